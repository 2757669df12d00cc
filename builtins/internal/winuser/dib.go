package winuser

import (
	"bytes"
	"encoding/binary"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"math/bits"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// What a BITMAPINFOHEADER has (wingdi.h), and the bounds of an image.
const (
	infoHeader   = 40
	compressRGB  = 0 // BI_RGB
	compressMask = 3 // BI_BITFIELDS
	maxSide      = 1 << 15
	maxPixels    = 1 << 26
)

// EncodeDIB writes a PNG image as the clipboard format CF_DIB has it: 32 bits a pixel, without transparency, which that
// does not know: what is transparent becomes white.
func EncodeDIB(content []byte) ([]byte, error) {
	config, err := png.DecodeConfig(bytes.NewReader(content))
	if err != nil {
		return nil, fault.Invalid("it is no PNG image: %v", err)
	}
	if err := checkSize(config.Width, config.Height); err != nil {
		return nil, err
	}
	decoded, err := png.Decode(bytes.NewReader(content))
	if err != nil {
		return nil, fault.Invalid("it is no PNG image: %v", err)
	}
	size := decoded.Bounds().Size()
	flat := image.NewRGBA(image.Rectangle{Max: size})
	draw.Draw(flat, flat.Rect, image.NewUniform(color.White), image.Point{}, draw.Src)
	draw.Draw(flat, flat.Rect, decoded, decoded.Bounds().Min, draw.Over)
	dib := make([]byte, infoHeader+4*size.X*size.Y)
	binary.LittleEndian.PutUint32(dib, infoHeader)
	binary.LittleEndian.PutUint32(dib[4:], uint32(size.X))
	binary.LittleEndian.PutUint32(dib[8:], uint32(size.Y))
	binary.LittleEndian.PutUint16(dib[12:], 1)
	binary.LittleEndian.PutUint16(dib[14:], 32)
	binary.LittleEndian.PutUint32(dib[20:], uint32(4*size.X*size.Y))
	out := dib[infoHeader:]
	for y := size.Y - 1; y >= 0; y-- { // from the bottom up
		row := flat.Pix[flat.PixOffset(0, y):]
		for x := range size.X {
			out[0], out[1], out[2] = row[4*x+2], row[4*x+1], row[4*x]
			out = out[4:]
		}
	}
	return dib, nil
}

func checkSize(width, height int) error {
	if width <= 0 || height <= 0 || width > maxSide || height > maxSide || width*height > maxPixels {
		return fault.Wrapf(fault.ErrTooLarge, "the image has %d by %d pixels", width, height)
	}
	return nil
}

// DecodeDIB makes a PNG of what the clipboard has as CF_DIB: 24 or 32 bits a pixel, plain or with masks. Others are
// unsupported.
func DecodeDIB(dib []byte) ([]byte, error) {
	if len(dib) < infoHeader {
		return nil, errDIB("is cut off")
	}
	head := int(binary.LittleEndian.Uint32(dib))
	width, height := int(int32(binary.LittleEndian.Uint32(dib[4:]))), int(int32(binary.LittleEndian.Uint32(dib[8:])))
	depth, compression := int(binary.LittleEndian.Uint16(dib[14:])), binary.LittleEndian.Uint32(dib[16:])
	up := height > 0
	if !up {
		height = -height
	}
	if err := checkSize(width, height); err != nil {
		return nil, err
	}
	if head < infoHeader || head > len(dib) || depth != 24 && depth != 32 || compression != compressRGB &&
		(compression != compressMask || depth != 32) {
		return nil, fault.Unsupported("the image of the clipboard has %d bits a pixel, compressed as %d", depth, compression)
	}
	masks := [3]uint32{0xff0000, 0xff00, 0xff}
	pixels := dib[head:]
	if compression == compressMask {
		if len(dib) < infoHeader+12 {
			return nil, errDIB("is cut off")
		}
		for i := range masks { // of a longer header they are a part
			masks[i] = binary.LittleEndian.Uint32(dib[infoHeader+4*i:])
		}
		if head == infoHeader {
			pixels = pixels[12:]
		}
	}
	stride := (width*depth/8 + 3) &^ 3
	if len(pixels) < stride*height {
		return nil, errDIB("is cut off")
	}
	img := image.NewNRGBA(image.Rect(0, 0, width, height))
	for y := range height {
		row := pixels[y*stride:]
		to := y
		if up {
			to = height - 1 - y
		}
		for x := range width {
			var pixel uint32
			if depth == 24 {
				pixel = uint32(row[3*x]) | uint32(row[3*x+1])<<8 | uint32(row[3*x+2])<<16
			} else {
				pixel = binary.LittleEndian.Uint32(row[4*x:])
			}
			img.SetNRGBA(x, to, color.NRGBA{R: channel(pixel, masks[0]), G: channel(pixel, masks[1]), B: channel(pixel, masks[2]),
				A: 0xff})
		}
	}
	var out bytes.Buffer
	if err := png.Encode(&out, img); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func errDIB(what string) error {
	return fault.Wrapf(fault.ErrCorrupt, "the image of the clipboard %s", what)
}

// channel is one colour of a pixel, in 8 bits.
func channel(pixel, mask uint32) uint8 {
	if mask == 0 {
		return 0
	}
	shift, width := bits.TrailingZeros32(mask), bits.OnesCount32(mask)
	value := (pixel & mask) >> shift
	if width >= 8 {
		return uint8(value >> (width - 8))
	}
	return uint8(value * 255 / (1<<width - 1))
}
