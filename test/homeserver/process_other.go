//go:build unix && !linux

package homeserver

import "syscall"

func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
