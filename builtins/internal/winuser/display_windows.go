package winuser

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Output is one display of the desktop.
type Output struct {
	// Name is that of the device, such as \\.\DISPLAY1, and Adapter what it is connected to.
	Name, Adapter string
	// Enabled says that it is a part of the desktop. Without that there is no mode and no place.
	Enabled, Primary bool
	Mode             Mode
	// X and Y are where its upper left corner is on the desktop.
	X, Y int32
	// Modes are those that it can be set to, each once.
	Modes []Mode
}

// Mode is what a display shows: pixels, and pictures a second; 0: what the driver has for its own.
type Mode struct{ Width, Height, Refresh uint32 }

// Setting is what a display shall be.
type Setting struct {
	Name    string
	Enabled bool
	Mode    Mode
	X, Y    int32
	Primary bool
}

// displayDevice is DISPLAY_DEVICEW, and deviceMode DEVMODEW with the fields of displays (wingdi.h).
type displayDevice struct {
	size    uint32
	name    [32]uint16
	text    [128]uint16
	state   uint32
	id, key [128]uint16
}

type deviceMode struct {
	deviceName                           [32]uint16
	specVersion, driverVersion           uint16
	size, extra                          uint16
	fields                               uint32
	x, y                                 int32
	orientation, fixedOutput             uint32
	color, duplex, yResolution, ttOption int16
	collate                              int16
	formName                             [32]uint16
	logPixels                            uint16
	bitsPerPixel, width, height, flags   uint32
	frequency                            uint32
	icmMethod, icmIntent, mediaType      uint32
	ditherType, reserved1, reserved2     uint32
	panningWidth, panningHeight          uint32
}

const (
	stateAttached = 0x1 // DISPLAY_DEVICE_ATTACHED_TO_DESKTOP
	statePrimary  = 0x4
	stateMirror   = 0x8

	currentMode = ^uint32(0) // ENUM_CURRENT_SETTINGS
	maxModes    = 4096

	fieldPosition  = 0x20
	fieldWidth     = 0x80000
	fieldHeight    = 0x100000
	fieldFrequency = 0x400000

	changeUpdate     = 0x1
	changeTest       = 0x2
	changeSetPrimary = 0x10
	changeNoReset    = 0x10000000
)

// Outputs lists the displays of the desktop, those that are switched off among them.
func Outputs() (list []Output, err error) {
	enumerate := user32("EnumDisplayDevicesW")
	for i := uintptr(0); ; i++ {
		device := displayDevice{size: uint32(unsafe.Sizeof(displayDevice{}))}
		if ok, _, _ := enumerate.Call(0, i, uintptr(unsafe.Pointer(&device)), 0); ok == 0 {
			break
		}
		if device.state&stateMirror != 0 {
			continue
		}
		o := Output{
			Name: windows.UTF16ToString(device.name[:]), Adapter: windows.UTF16ToString(device.text[:]),
			Enabled: device.state&stateAttached != 0, Primary: device.state&statePrimary != 0,
		}
		if o.Enabled {
			now, ok := modeOf(o.Name, currentMode)
			if !ok {
				return nil, fault.On(o.Name, fault.Wrapf(fault.ErrOutput, "Windows does not say what it shows"))
			}
			o.Mode, o.X, o.Y = Mode{now.width, now.height, now.frequency}, now.x, now.y
		}
		o.Modes = modesOf(o.Name)
		list = append(list, o)
	}
	if len(list) == 0 {
		return nil, fault.Unsupported("this process sees no display")
	}
	return list, nil
}

func modeOf(name string, which uint32) (deviceMode, bool) {
	mode := deviceMode{size: uint16(unsafe.Sizeof(deviceMode{}))}
	text, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return mode, false
	}
	ok, _, _ := user32("EnumDisplaySettingsW").Call(uintptr(unsafe.Pointer(text)), uintptr(which), uintptr(unsafe.Pointer(&mode)))
	return mode, ok != 0
}

func modesOf(name string) (modes []Mode) {
	known := map[Mode]bool{}
	for i := range uint32(maxModes) {
		m, ok := modeOf(name, i)
		if !ok {
			break
		}
		if mode := (Mode{m.width, m.height, m.frequency}); !known[mode] {
			known[mode] = true
			modes = append(modes, mode)
		}
	}
	return modes
}

// Apply makes displays what the settings say, all in one step: each is tried first, and nothing is changed if one is refused. A
// display that no setting names stays as it is. The caller looks for itself what came of it.
func Apply(settings []Setting) error {
	modes := make([]*deviceMode, len(settings))
	for i, s := range settings {
		modes[i] = s.mode()
		if !s.Enabled {
			continue // the driver is not asked about one that goes
		}
		if err := change(s.Name, modes[i], changeTest); err != nil {
			return fault.On(s.Name, err)
		}
	}
	var all error
	for i, s := range settings {
		flags := uint32(changeUpdate | changeNoReset)
		if s.Primary {
			flags |= changeSetPrimary
		}
		all = errors.Join(all, fault.On(s.Name, change(s.Name, modes[i], flags)))
	}
	if all != nil {
		return all // nothing is shown yet
	}
	return change("", nil, 0)
}

func (s Setting) mode() *deviceMode {
	m := &deviceMode{size: uint16(unsafe.Sizeof(deviceMode{})), fields: fieldPosition | fieldWidth | fieldHeight}
	if !s.Enabled {
		return m // without a size it is switched off
	}
	m.width, m.height, m.x, m.y = s.Mode.Width, s.Mode.Height, s.X, s.Y
	if s.Mode.Refresh > 0 {
		m.frequency = s.Mode.Refresh
		m.fields |= fieldFrequency
	}
	return m
}

// changeErrors are what ChangeDisplaySettingsEx returns (winuser.h).
var changeErrors = map[int32]string{
	1: "Windows must be restarted for it", -1: "the driver fails", -2: "it has no such mode", -3: "the registry cannot be written",
	-4: "the flags are wrong", -5: "the parameters are wrong", -6: "it shows two views of one",
}

func change(name string, mode *deviceMode, flags uint32) error {
	var text *uint16
	if name != "" {
		var err error
		if text, err = windows.UTF16PtrFromString(name); err != nil {
			return fault.Invalid("it is no name of a display")
		}
	}
	code, _, _ := user32("ChangeDisplaySettingsExW").Call(uintptr(unsafe.Pointer(text)), uintptr(unsafe.Pointer(mode)), 0,
		uintptr(flags), 0)
	if int32(code) == 0 {
		return nil
	}
	what := changeErrors[int32(code)]
	if what == "" {
		what = fmt.Sprintf("Windows refuses it (%d)", int32(code))
	}
	if int32(code) == -2 || int32(code) == -5 {
		return fault.Invalid("%s", what)
	}
	return fault.Wrapf(fault.ErrOutput, "%s", what)
}
