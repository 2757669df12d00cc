package host

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"regexp"
	"strings"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/builtins/internal/privilege"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// settingUndo is the inverse of what is set.
const settingUndo = "host.setting_undo"

// settingKind is that of the objects in Access, whose names are hostname, timezone and so on.
const settingKind = "setting"

// platformRows are those of this system alone.
func (r *Room) platformRows() []builtins.Op {
	return []builtins.Op{{
		Name: settingUndo, Usage: "(setting)", Summary: "set a setting to what it was",
		Mutates: true, Internal: true, Access: builtins.Of(undoAccessOf),
		Handler: builtins.Handle(r.undoSetting),
	}}
}

var words = map[pb.SettingUndo_Setting]string{
	pb.SettingUndo_SETTING_HOSTNAME: "hostname", pb.SettingUndo_SETTING_TIMEZONE: "timezone",
}

func undoAccessOf(in *pb.SettingUndo) builtins.Access { return setting(words[in.Setting]) }

func setting(name string) builtins.Access {
	return builtins.Access{Objects: []builtins.Object{{Kind: settingKind, Name: name}}}
}

// systemName is the name of the system, and which of its products it is.
func systemName(release facts.Release) (system, product string) { return "windows", release.Name }

func (r *Room) hostnameAccess(*pb.HostnameArgs) builtins.Access { return setting("hostname") }
func timezoneAccess(*pb.TimezoneArgs) builtins.Access           { return setting("timezone") }
func localeAccess(*pb.LocaleArgs) builtins.Access               { return setting("locale") }
func keymapAccess(*pb.KeymapArgs) builtins.Access               { return setting("keymap") }
func sysctlAccess(in *pb.SysctlArgs) builtins.Access            { return setting(in.Name) }

func (r *Room) locale(context.Context, *builtins.Call, *pb.LocaleArgs) (*pb.LuaValue, error) {
	return nil, fault.Unsupported("host.locale is not there on Windows")
}

func (r *Room) keymap(context.Context, *builtins.Call, *pb.KeymapArgs) (*pb.LuaValue, error) {
	return nil, fault.Unsupported("host.keymap is not there on Windows")
}

func (r *Room) sysctl(context.Context, *builtins.Call, *pb.SysctlArgs) (*pb.LuaValue, error) {
	return nil, fault.Unsupported("Windows has no sysctl; what it has instead is in its registry")
}

// settings is how the settings of a machine are read and written. Tests have their own where Wine does not know a call.
type settings struct {
	// pendingName is what the machine will be called after the next boot.
	pendingName func() (string, error)
	setName     func(name string) error
	zone        func() (string, error)
	setZone     func(name string) error
}

func windowsSettings() settings {
	return settings{pendingName: pendingName, setName: setComputerName, zone: currentZone, setZone: setZone}
}

// computerName is a name that NetBIOS takes as well: Windows cuts none.
var computerName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,13}[A-Za-z0-9])?$`)

func (r *Room) hostname(ctx context.Context, call *builtins.Call, in *pb.HostnameArgs) (*pb.LuaValue, error) {
	return windowsSettings().hostname(ctx, call, r.guest.Live, in.New)
}

// hostname returns the name that counts now, or sets that of the next boot.
func (s settings) hostname(ctx context.Context, call *builtins.Call, live bool, to string) (*pb.LuaValue, error) {
	switch {
	case !live:
		return nil, fault.Unsupported("the name of a Windows that does not run is not supported")
	case to == "":
		return text(facts.Hostname("/")), nil
	case !computerName.MatchString(to) || strings.Trim(to, "0123456789") == "":
		return nil, fault.Invalid("%q is no name of a computer: letters, digits and hyphens, at most 15, not digits alone", to)
	}
	changed, err := s.change(ctx, call, pb.SettingUndo_SETTING_HOSTNAME, to, s.pendingName, s.setName, strings.EqualFold)
	return yes(changed), err
}

func (r *Room) timezone(ctx context.Context, call *builtins.Call, in *pb.TimezoneArgs) (*pb.LuaValue, error) {
	return windowsSettings().timezone(ctx, call, r.guest.Live, in.New)
}

// timezone returns the time zone, or sets it.
func (s settings) timezone(ctx context.Context, call *builtins.Call, live bool, to string) (*pb.LuaValue, error) {
	if !live {
		return nil, fault.Unsupported("the time zone of a Windows that does not run is not supported")
	}
	if to == "" {
		if zone, ok := pretendedSetting(call, pb.SettingUndo_SETTING_TIMEZONE); ok {
			return text(zone), nil
		}
		zone, err := s.zone()
		return text(zone), err
	}
	if _, err := readZone(to); err != nil {
		return nil, fault.On(to, err)
	}
	changed, err := s.change(ctx, call, pb.SettingUndo_SETTING_TIMEZONE, to, s.zone, s.setZone, strings.EqualFold)
	return yes(changed), err
}

// pretendedSetting is what a dry run pretends that a setting is.
func pretendedSetting(call *builtins.Call, which pb.SettingUndo_Setting) (string, bool) {
	if call.DryRun == nil {
		return "", false
	}
	values, _ := call.DryRun.Pretended[settingKind].(map[pb.SettingUndo_Setting]string)
	value, ok := values[which]
	return value, ok
}

// change sets a setting, unless it is so already, and sees that it is then.
func (s settings) change(
	ctx context.Context, call *builtins.Call, which pb.SettingUndo_Setting, to string,
	read func() (string, error), write func(string) error, same func(a, b string) bool,
) (bool, error) {
	have, known := pretendedSetting(call, which)
	if !known {
		var err error
		if have, err = read(); err != nil {
			return false, fault.On(words[which], err)
		}
	}
	if same(have, to) {
		return false, nil
	}
	if call.DryRun != nil {
		if call.DryRun.Pretended == nil {
			call.DryRun.Pretended = map[string]any{}
		}
		values, ok := call.DryRun.Pretended[settingKind].(map[pb.SettingUndo_Setting]string)
		if !ok {
			values = map[pb.SettingUndo_Setting]string{}
			call.DryRun.Pretended[settingKind] = values
		}
		values[which] = to
	} else {
		if call.Tx != nil {
			if err := call.Tx.Undo(ctx, settingUndo, &pb.SettingUndo{Setting: which, Value: []byte(have)}); err != nil {
				return false, err
			}
		}
		if err := write(to); err != nil {
			return false, fault.On(words[which], err)
		}
		if now, err := read(); err != nil || !same(now, to) {
			return false, fault.On(words[which], errors.Join(fault.Wrapf(fault.ErrOutput, "it is %q still", now), err))
		}
	}
	call.ReportApplied(&pb.Change{Op: "host." + words[which], Target: words[which], Action: "modified"})
	return true, nil
}

// undoSetting is the inverse. It bears that nothing was changed.
func (r *Room) undoSetting(_ context.Context, _ *builtins.Call, in *pb.SettingUndo) (*pb.Changed, error) {
	return windowsSettings().undo(in)
}

func (s settings) undo(in *pb.SettingUndo) (*pb.Changed, error) {
	read, write := s.pendingName, s.setName
	switch in.Setting {
	case pb.SettingUndo_SETTING_HOSTNAME:
	case pb.SettingUndo_SETTING_TIMEZONE:
		read, write = s.zone, s.setZone
	default:
		return nil, fault.Wrapf(fault.ErrCorrupt, "there is no setting %d", in.Setting)
	}
	if have, err := read(); err == nil && strings.EqualFold(have, string(in.Value)) {
		return &pb.Changed{}, nil
	}
	return &pb.Changed{Changed: true}, fault.On(words[in.Setting], write(string(in.Value)))
}

// pendingName reads what Tcpip will take for the name at the next boot; where that is nothing, it is the present one.
func pendingName() (string, error) {
	key, err := registry.OpenKey(registry.LOCAL_MACHINE, `SYSTEM\CurrentControlSet\Services\Tcpip\Parameters`,
		registry.QUERY_VALUE)
	if err == nil {
		defer key.Close()
		for _, value := range []string{"NV Hostname", "Hostname"} {
			if name, _, err := key.GetStringValue(value); err == nil && name != "" {
				return name, nil
			}
		}
	}
	return facts.Hostname("/"), nil
}

// setComputerName sets the name that the machine has from the next boot on.
func setComputerName(name string) error {
	to, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return err
	}
	set := windows.NewLazySystemDLL("kernel32.dll").NewProc("SetComputerNameExW")
	if ok, _, err := set.Call(windows.ComputerNamePhysicalDnsHostname, uintptr(unsafe.Pointer(to))); ok == 0 {
		return fault.Cause(err)
	}
	return nil
}

// zones is below which key Windows has its time zones.
const zones = `SOFTWARE\Microsoft\Windows NT\CurrentVersion\Time Zones`

// zone is DYNAMIC_TIME_ZONE_INFORMATION.
type zone struct {
	bias         int32
	standardName [32]uint16
	standardDate windows.Systemtime
	standardBias int32
	daylightName [32]uint16
	daylightDate windows.Systemtime
	daylightBias int32
	key          [128]uint16
	noDaylight   uint8
}

// readZone reads a time zone by the name that Windows has for it in every language.
func readZone(name string) (*zone, error) {
	absent := &fault.Error{
		Err:  fault.Wrapf(fs.ErrNotExist, "Windows has no such time zone"),
		Hint: `its names are the keys below HKLM\` + zones + `, such as W. Europe Standard Time or UTC`,
	}
	if name == "" || len(name) > 127 || strings.ContainsAny(name, "\\\x00") {
		return nil, absent
	}
	key, err := registry.OpenKey(registry.LOCAL_MACHINE, zones+`\`+name, registry.QUERY_VALUE)
	if errors.Is(err, registry.ErrNotExist) {
		return nil, absent
	}
	if err != nil {
		return nil, fault.Cause(err)
	}
	defer key.Close()
	// REG_TZI_FORMAT: three offsets, and two dates of 16 bytes.
	data, _, err := key.GetBinaryValue("TZI")
	if err != nil || len(data) != 44 {
		return nil, fault.Wrapf(fault.ErrCorrupt, "what the registry has of it makes no sense")
	}
	z := &zone{
		bias:         int32(binary.LittleEndian.Uint32(data)),
		standardBias: int32(binary.LittleEndian.Uint32(data[4:])), daylightBias: int32(binary.LittleEndian.Uint32(data[8:])),
		standardDate: dateOf(data[12:]), daylightDate: dateOf(data[28:]),
	}
	for value, to := range map[string]*[32]uint16{"Std": &z.standardName, "Dlt": &z.daylightName} {
		if name, _, err := key.GetStringValue(value); err == nil {
			copyText(to[:], name)
		}
	}
	copyText(z.key[:], name)
	return z, nil
}

func dateOf(data []byte) windows.Systemtime {
	at := func(i int) uint16 { return binary.LittleEndian.Uint16(data[2*i:]) }
	return windows.Systemtime{Year: at(0), Month: at(1), DayOfWeek: at(2), Day: at(3), Hour: at(4), Minute: at(5),
		Second: at(6), Milliseconds: at(7)}
}

// copyText copies a text, cut to what fits with a zero after it.
func copyText(to []uint16, s string) {
	units, err := windows.UTF16FromString(s)
	if err == nil {
		copy(to[:len(to)-1], units)
	}
}

func currentZone() (string, error) {
	var z zone
	get := windows.NewLazySystemDLL("kernel32.dll").NewProc("GetDynamicTimeZoneInformation")
	const invalid = 0xffffffff
	if code, _, err := get.Call(uintptr(unsafe.Pointer(&z))); uint32(code) == invalid {
		return "", fault.Cause(err)
	}
	return windows.UTF16ToString(z.key[:]), nil
}

func setZone(name string) error {
	z, err := readZone(name)
	if err != nil {
		return err
	}
	if err := privilege.Enable(privilege.TimeZone); err != nil {
		return err
	}
	set := windows.NewLazySystemDLL("kernel32.dll").NewProc("SetDynamicTimeZoneInformation")
	if ok, _, err := set.Call(uintptr(unsafe.Pointer(z))); ok == 0 {
		return fault.Cause(err)
	}
	return nil
}
