package diskimage

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// marker is the variable of the environment with the mount namespace that this process made for itself.
const marker = "QUANTIX_KVM_IMAGE_NAMESPACE"

// OwnNamespace starts this program anew in a mount namespace of its own, where it was not yet: what is mounted there is not
// seen outside, and is gone when the last process in it is, also after SIGKILL. In the program that is started anew, with the
// same arguments, it returns nil. It needs root.
func OwnNamespace() error {
	here, err := os.Readlink("/proc/thread-self/ns/mnt")
	if err != nil {
		return fmt.Errorf("find the mount namespace: %w", err)
	}
	if os.Getenv(marker) == here {
		return os.Unsetenv(marker)
	}
	if os.Geteuid() != 0 {
		return errors.New("mounting an image needs root")
	}
	runtime.LockOSThread() // exec makes this thread the process
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts of the namespace its own: %w", err)
	}
	if here, err = os.Readlink("/proc/thread-self/ns/mnt"); err != nil {
		return err
	}
	env := []string{marker + "=" + here}
	for _, pair := range os.Environ() {
		if !strings.HasPrefix(pair, marker+"=") {
			env = append(env, pair)
		}
	}
	return fmt.Errorf("start anew: %w", unix.Exec("/proc/self/exe", os.Args, env))
}
