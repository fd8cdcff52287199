package homeserver

import "syscall"

// attributes end the server with the test binary, also when that panics or is killed.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
