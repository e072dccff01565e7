package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// runIn runs a container's command in a chroot of an image.
func (c *checker) runIn(image string, p pod, k container, volumes folders) (string, error) {
	root, err := os.MkdirTemp(c.work, "image")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(root, 0o755); err != nil { //nolint:gosec // G302: the container has another user
		return "", err
	}
	if err := c.unpack(image, root); err != nil {
		return "", err
	}
	if script := filepath.Join(root, "app", "get_tpm_pubhash"); c.pubhash != "" && strings.HasSuffix(image, "-shell") {
		err := os.WriteFile(script, []byte("#!/bin/sh\necho "+c.pubhash+"\n"), 0o755) //nolint:gosec // G306: a program
		if err != nil {
			return "", err
		}
	}
	unmount, err := bind(root, k.VolumeMounts, volumes)
	if err != nil {
		return "", err
	}
	defer unmount()
	command := slices.Concat(k.Command, k.Args)
	if len(command) == 0 {
		return "", errors.New("it has no command")
	}
	return inRoot(root, who(p.SecurityContext, k.SecurityContext), command...)
}

// who returns the user and the group of a container.
func who(all, own user) *syscall.Credential {
	pick := func(values ...*int) uint32 {
		for _, v := range values {
			if v != nil {
				return uint32(*v)
			}
		}
		return 0
	}
	return &syscall.Credential{Uid: pick(own.RunAsUser, all.RunAsUser), Gid: pick(own.RunAsGroup, all.RunAsGroup)}
}

// inRoot runs a command with another root.
func inRoot(root string, as *syscall.Credential, command ...string) (string, error) {
	path := command[0]
	if !strings.HasPrefix(path, "/") {
		path = "/bin/" + path
	}
	cmd := exec.CommandContext(context.Background(), path, command[1:]...) //nolint:gosec // G204: what the chart says
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Credential: as}
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// bind mounts volumes, and what containers have besides, below a root.
func bind(root string, mounts []mount, volumes folders) (unmount func(), err error) {
	var done []string
	unmount = func() {
		for _, path := range slices.Backward(done) {
			_ = syscall.Unmount(path, syscall.MNT_DETACH) // the namespace ends soon
		}
	}
	defer func() {
		if err != nil {
			unmount()
		}
	}()
	proc := filepath.Join(root, "proc")
	if err := os.MkdirAll(proc, 0o755); err != nil { //nolint:gosec // G301: as in a container
		return nil, err
	}
	if err := syscall.Mount("proc", proc, "proc", 0, ""); err != nil {
		return nil, fmt.Errorf("mount proc: %w", err)
	}
	done = append(done, proc)
	for _, m := range mounts {
		at := filepath.Join(root, m.MountPath)
		if strings.HasPrefix(m.MountPath, "/dev/") { // a device of the machine; here, a file
			//nolint:gosec // G301, G306: as in a container
			if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, nil, 0o666)); err != nil {
				return nil, err
			}
			continue
		}
		if err := os.MkdirAll(at, 0o755); err != nil { //nolint:gosec // G301: as in a container
			return nil, err
		}
		if err := syscall.Mount(volumes[m.Name], at, "", syscall.MS_BIND, ""); err != nil {
			return nil, fmt.Errorf("mount the volume %s: %w", m.Name, err)
		}
		done = append(done, at)
	}
	return unmount, nil
}
