package main

import (
	"github.com/quantix-kvm/guest-agent/runtime/agent"
	"github.com/quantix-kvm/guest-agent/runtime/config"
)

// protocols are what implements each protocol that config knows.
var protocols = map[config.Protocol]agent.Protocol{
	config.Native: nil, // the agent's own
}

// protocolOf returns what is spoken on a port of that name; nil: the native protocol.
func protocolOf(portName string) agent.Protocol { return protocols[config.ProtocolOf(portName)] }
