package clip

import (
	"bytes"
	"image/png"

	"golang.org/x/image/bmp"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// bmpOfPNG converts an image.
func bmpOfPNG(data []byte) ([]byte, error) {
	width, height, bytesPerPixel, err := pngHeader(data)
	if err != nil {
		return nil, err
	}
	if width*height*bytesPerPixel > maxDecoded {
		return nil, fault.Wrapf(fault.ErrTooLarge, "an image of %dx%d pixels is too large to be converted", width, height)
	}
	image, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		return nil, damaged(err)
	}
	var out bytes.Buffer
	out.Grow(int(width*height*4) + 256) // and its header: it would take twice that while it grows
	if err := bmp.Encode(&out, image); err != nil {
		return nil, damaged(err)
	}
	return out.Bytes(), nil
}
