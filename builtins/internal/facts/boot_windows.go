package facts

import (
	"crypto/rand"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
)

// bootKey is a key that Windows forgets when it ends: what is in it is of this boot.
const (
	bootKey   = `SOFTWARE\Quantix-KVM.Boot`
	bootValue = "Id"
	// bootWait is how long another process may take from making the key to writing what is in it.
	bootWait = time.Second

	optionVolatile = 1 // REG_OPTION_VOLATILE
	createdNew     = 1 // REG_CREATED_NEW_KEY
)

// BootID identifies this boot of the kernel, also after a hibernation; empty where the agent may
// not write to the registry.
func BootID() string {
	key, made, err := createVolatile(registry.LOCAL_MACHINE, bootKey)
	if err != nil {
		return ""
	}
	defer key.Close()
	if made {
		if key.SetStringValue(bootValue, rand.Text()) != nil {
			return ""
		}
	}
	for until := time.Now().Add(bootWait); ; time.Sleep(time.Millisecond) {
		id, _, err := key.GetStringValue(bootValue)
		if err == nil || time.Now().After(until) {
			return id
		}
	}
}

// createVolatile opens a key, or makes one that is lost at the next boot.
func createVolatile(parent registry.Key, path string) (key registry.Key, made bool, err error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return 0, false, err
	}
	var disposition uint32
	create := windows.NewLazySystemDLL("advapi32.dll").NewProc("RegCreateKeyExW")
	code, _, _ := create.Call(uintptr(parent), uintptr(unsafe.Pointer(name)), 0, 0, optionVolatile,
		registry.QUERY_VALUE|registry.SET_VALUE|registry.WOW64_64KEY, 0, uintptr(unsafe.Pointer(&key)),
		uintptr(unsafe.Pointer(&disposition)))
	if code != 0 {
		return 0, false, windows.Errno(code)
	}
	return key, disposition == createdNew, nil
}
