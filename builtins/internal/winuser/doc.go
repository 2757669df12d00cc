// Package winuser reads and sets what belongs to the desktop of a user of Windows: displays and the clipboard.
//
//	Outputs, Apply ◄─► EnumDisplayDevices, EnumDisplaySettings, ChangeDisplaySettingsEx
//	Clipboard ◄─► a window of its own, to which Windows says when the clipboard was changed
//	html.go, dib.go: the forms that Windows has for HTML and images ◄─► HTML, PNG
//
// It works on the desktop of the process that calls: a service, which is in session 0, has another one than the user who is
// logged in, so a process in the session of that user must call.
//
// Not here: who may read and set it, and how a process comes into a session.
package winuser
