package sqltable

// CheckFiles reads each file that the configuration names, as the next connection to the database
// would. It calls wrong with the field of each that a connection would fail over, and why. It
// connects to nothing. No error shows the data source name.
func (c Config) CheckFiles(wrong func(field string, err error)) {
	c = c.withDefaults()
	dsn, err := readDSN(c.DSNPath)
	if err != nil {
		wrong("dsn_path", err)
		return
	}
	of := connector{cfg: c, dsn: dsn}
	if _, err := of.tls(); err != nil {
		wrong("ca_path", err)
		return
	}
	if _, err := of.prepare(); err != nil {
		wrong("dsn_path", err)
	}
}
