package clip

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"image/png"
	"strings"

	"golang.org/x/image/bmp"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

const (
	// MaxPixels is the most pixels of an image: twice a screen of 7680x4320.
	MaxPixels = 1 << 26
	// maxDecoded is the most bytes of the pixels of an image that is converted: one of 4096x4096.
	maxDecoded = 64 << 20
)

var pngSignature = []byte("\x89PNG\r\n\x1a\n")

// imageType returns what the first bytes say that an image is: png, bmp, or the name of what is not supported.
func imageType(data []byte) string {
	switch {
	case bytes.HasPrefix(data, pngSignature):
		return "png"
	case bytes.HasPrefix(data, []byte("BM")):
		return "bmp"
	case bytes.HasPrefix(data, []byte{0xff, 0xd8, 0xff}):
		return "JPEG"
	case bytes.HasPrefix(data, []byte("GIF8")):
		return "GIF"
	}
	return "of an unknown kind"
}

// ToPNG returns an image as PNG: one that is PNG as it is, a BMP converted.
func ToPNG(data []byte) ([]byte, error) {
	switch kind := imageType(data); kind {
	case "png":
		return data, CheckPNG(data)
	case "bmp":
		return pngOfBMP(data)
	default:
		return nil, unsupportedImage(kind)
	}
}

// checkImage is ToPNG without the conversion.
func checkImage(data []byte) error {
	switch kind := imageType(data); kind {
	case "png":
		return CheckPNG(data)
	case "bmp":
		return checkBMP(data)
	default:
		return unsupportedImage(kind)
	}
}

func unsupportedImage(kind string) error {
	return fault.Unsupported("the image is %s; supported: PNG, BMP", kind)
}

// CheckPNG returns why an image is no PNG of at most MaxPixels: its parts must be whole, in order, and as their checksums say.
// Its pixels are not decoded.
func CheckPNG(data []byte) error {
	_, _, _, err := pngHeader(data)
	if err != nil {
		return err
	}
	rest, pixels := data[len(pngSignature):], false
	for len(rest) >= 12 { // length, name, checksum
		size, name := binary.BigEndian.Uint32(rest), string(rest[4:8])
		if uint64(size)+12 > uint64(len(rest)) {
			break
		}
		if crc32.ChecksumIEEE(rest[4:8+size]) != binary.BigEndian.Uint32(rest[8+size:]) {
			return fault.Invalid("the PNG is damaged: the checksum of its part %q is wrong", name)
		}
		rest, pixels = rest[12+size:], pixels || name == "IDAT"
		if name == "IEND" && pixels {
			return nil
		}
	}
	return fault.Invalid("the PNG is not whole")
}

// pngHeader returns size and bytes of a pixel from the header, once they are within bounds.
func pngHeader(data []byte) (width, height, bytesPerPixel uint64, err error) {
	const header = 8 + 8 + 13 // signature, length and name, content (PNG specification, "IHDR")
	if len(data) < header || !bytes.HasPrefix(data, pngSignature) || string(data[12:16]) != "IHDR" {
		return 0, 0, 0, fault.Invalid("it is no PNG")
	}
	width, height = uint64(binary.BigEndian.Uint32(data[16:])), uint64(binary.BigEndian.Uint32(data[20:]))
	bytesPerPixel = 4
	if data[24] == 16 {
		bytesPerPixel = 8
	}
	return width, height, bytesPerPixel, checkSize(width, height)
}

func checkSize(width, height uint64) error {
	switch {
	case width == 0 || height == 0 || width > 1<<31 || height > 1<<31:
		return fault.Invalid("an image of %dx%d pixels cannot be", width, height)
	case width*height > MaxPixels:
		return fault.Wrapf(fault.ErrTooLarge, "an image of %dx%d pixels is larger than %d pixels", width, height, MaxPixels)
	}
	return nil
}

// checkBMP returns why a BMP is not converted. It must have as many bytes as its header says that its pixels take.
func checkBMP(data []byte) error {
	config, err := bmp.DecodeConfig(bytes.NewReader(data))
	if err != nil {
		return damaged(err)
	}
	width, height := uint64(config.Width), uint64(config.Height)
	if err := checkSize(width, height); err != nil {
		return err
	}
	if width*height*4 > maxDecoded {
		return fault.Wrapf(fault.ErrTooLarge, "an image of %dx%d pixels is too large to be converted", width, height)
	}
	bits := uint64(binary.LittleEndian.Uint16(data[28:])) // of a pixel; DecodeConfig has read the header up to there
	if row := (width*bits + 31) / 32 * 4; row*height > uint64(len(data)) {
		return fault.Invalid("the BMP is not whole: %d bytes for %dx%d pixels of %d bits", len(data), width, height, bits)
	}
	return nil
}

// pngOfBMP converts an image.
func pngOfBMP(data []byte) ([]byte, error) {
	if err := checkBMP(data); err != nil {
		return nil, err
	}
	image, err := bmp.Decode(bytes.NewReader(data))
	if err != nil {
		return nil, damaged(err)
	}
	var out bytes.Buffer
	encoder := png.Encoder{CompressionLevel: png.BestSpeed}
	if err := encoder.Encode(&out, image); err != nil {
		return nil, damaged(err)
	}
	if out.Len() > MaxContent {
		return nil, errTooLarge(MaxContent)
	}
	return out.Bytes(), nil
}

func damaged(err error) error {
	return fault.Invalid("the image is damaged, or of a kind that is not supported: %s", strings.TrimPrefix(err.Error(), "bmp: "))
}
