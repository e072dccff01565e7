package sqltable

// CheckFiles reads the files that the configuration names, as the next connection to the database
// would. For each file over which the connection would fail, it calls wrong with the name of the
// field and the reason. It connects to nothing. No error shows the data source name.
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
