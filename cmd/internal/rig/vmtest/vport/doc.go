// Package vport opens a virtio-serial port inside the test guest for the rig's own programs.
//
// It is deliberately not the agent's way of opening ports: the rig must notice that the agent's is broken.
//
// Not here: framing; what travels over the port; anything but Linux, since the test guest is a Linux machine.
package vport
