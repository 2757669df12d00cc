package outputs

import "math"

// timing is a video timing, as RandR has it: sizes and positions in pixels and lines, the clock in Hz.
type timing struct {
	clock                           uint32
	hSyncStart, hSyncEnd, hTotal    uint16
	vSyncStart, vSyncEnd, vTotal    uint16
	hSyncPositive, vSyncPositive    bool
	horizontalPixels, verticalLines uint16
}

// The constants of reduced blanking, version 2 (VESA Coordinated Video Timings 1.2, "Reduced Blank Timing Version 2"). Unlike
// version 1 it has no cells of 8 pixels, so that any width can be had, and any refresh rate.
const (
	minBlankTime    = 460e-6 // seconds of vertical blanking, at least
	hBlank          = 80
	hFrontPorch     = 8
	hSyncWidth      = 32
	vSyncWidth      = 8
	vBackPorch      = 6
	minVFrontPorch  = 1
	clockStep       = 1000 // Hz
	defaultRefresh  = 60
	minBlankedLines = minVFrontPorch + vSyncWidth + vBackPorch
)

// cvt returns the timing of a mode with reduced blanking; false: its clock is more than a mode can have.
func cvt(width, height uint32, refresh float64) (timing, bool) {
	lineTime := (1/refresh - minBlankTime) / float64(height)
	blanked := max(math.Floor(minBlankTime/lineTime)+1, minBlankedLines)
	vTotal := height + uint32(blanked)
	hTotal := width + hBlank
	clock := math.Floor(refresh*float64(vTotal)*float64(hTotal)/clockStep) * clockStep
	if clock > math.MaxUint32 {
		return timing{}, false
	}
	return timing{
		clock:            uint32(clock),
		horizontalPixels: uint16(width), hSyncStart: uint16(width + hFrontPorch),
		hSyncEnd: uint16(width + hFrontPorch + hSyncWidth), hTotal: uint16(hTotal),
		verticalLines: uint16(height), vSyncStart: uint16(vTotal - vBackPorch - vSyncWidth),
		vSyncEnd: uint16(vTotal - vBackPorch), vTotal: uint16(vTotal),
		hSyncPositive: true,
	}, true
}
