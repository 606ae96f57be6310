package vhostuser

import (
	"encoding/binary"
	"fmt"
)

// Request is a front-end message type (vhost-user, "Front-end message types"). Those of other kinds
// of devices, of postcopy migration and of the in-band notifications are left out: nothing here
// offers the features they need.
type Request uint32

const (
	GetFeatures         Request = 1  // VHOST_USER_GET_FEATURES
	SetFeatures         Request = 2  // VHOST_USER_SET_FEATURES
	SetOwner            Request = 3  // VHOST_USER_SET_OWNER
	ResetOwner          Request = 4  // VHOST_USER_RESET_OWNER
	SetMemTable         Request = 5  // VHOST_USER_SET_MEM_TABLE
	SetLogBase          Request = 6  // VHOST_USER_SET_LOG_BASE
	SetLogFD            Request = 7  // VHOST_USER_SET_LOG_FD
	SetVringNum         Request = 8  // VHOST_USER_SET_VRING_NUM
	SetVringAddr        Request = 9  // VHOST_USER_SET_VRING_ADDR
	SetVringBase        Request = 10 // VHOST_USER_SET_VRING_BASE
	GetVringBase        Request = 11 // VHOST_USER_GET_VRING_BASE
	SetVringKick        Request = 12 // VHOST_USER_SET_VRING_KICK
	SetVringCall        Request = 13 // VHOST_USER_SET_VRING_CALL
	SetVringErr         Request = 14 // VHOST_USER_SET_VRING_ERR
	GetProtocolFeatures Request = 15 // VHOST_USER_GET_PROTOCOL_FEATURES
	SetProtocolFeatures Request = 16 // VHOST_USER_SET_PROTOCOL_FEATURES
	GetQueueNum         Request = 17 // VHOST_USER_GET_QUEUE_NUM
	SetVringEnable      Request = 18 // VHOST_USER_SET_VRING_ENABLE
	SetBackendReqFD     Request = 21 // VHOST_USER_SET_BACKEND_REQ_FD
	GetConfig           Request = 24 // VHOST_USER_GET_CONFIG
	SetConfig           Request = 25 // VHOST_USER_SET_CONFIG
	GetInflightFD       Request = 31 // VHOST_USER_GET_INFLIGHT_FD
	SetInflightFD       Request = 32 // VHOST_USER_SET_INFLIGHT_FD
	ResetDevice         Request = 34 // VHOST_USER_RESET_DEVICE
	GetMaxMemSlots      Request = 36 // VHOST_USER_GET_MAX_MEM_SLOTS
	AddMemReg           Request = 37 // VHOST_USER_ADD_MEM_REG
	RemMemReg           Request = 38 // VHOST_USER_REM_MEM_REG
	SetStatus           Request = 39 // VHOST_USER_SET_STATUS
	GetStatus           Request = 40 // VHOST_USER_GET_STATUS
)

var requestNames = map[Request]string{
	GetFeatures:         "GET_FEATURES",
	SetFeatures:         "SET_FEATURES",
	SetOwner:            "SET_OWNER",
	ResetOwner:          "RESET_OWNER",
	SetMemTable:         "SET_MEM_TABLE",
	SetLogBase:          "SET_LOG_BASE",
	SetLogFD:            "SET_LOG_FD",
	SetVringNum:         "SET_VRING_NUM",
	SetVringAddr:        "SET_VRING_ADDR",
	SetVringBase:        "SET_VRING_BASE",
	GetVringBase:        "GET_VRING_BASE",
	SetVringKick:        "SET_VRING_KICK",
	SetVringCall:        "SET_VRING_CALL",
	SetVringErr:         "SET_VRING_ERR",
	GetProtocolFeatures: "GET_PROTOCOL_FEATURES",
	SetProtocolFeatures: "SET_PROTOCOL_FEATURES",
	GetQueueNum:         "GET_QUEUE_NUM",
	SetVringEnable:      "SET_VRING_ENABLE",
	SetBackendReqFD:     "SET_BACKEND_REQ_FD",
	GetConfig:           "GET_CONFIG",
	SetConfig:           "SET_CONFIG",
	GetInflightFD:       "GET_INFLIGHT_FD",
	SetInflightFD:       "SET_INFLIGHT_FD",
	ResetDevice:         "RESET_DEVICE",
	GetMaxMemSlots:      "GET_MAX_MEM_SLOTS",
	AddMemReg:           "ADD_MEM_REG",
	RemMemReg:           "REM_MEM_REG",
	SetStatus:           "SET_STATUS",
	GetStatus:           "GET_STATUS",
}

// String returns the specification's name without its VHOST_USER_ prefix.
func (r Request) String() string {
	if name, ok := requestNames[r]; ok {
		return name
	}
	return fmt.Sprintf("request %d", uint32(r))
}

// BackendRequest is a back-end message type (vhost-user, "Back-end message types").
type BackendRequest uint32

// BackendConfigChangeMsg tells the front-end to read the configuration space again
// (VHOST_USER_BACKEND_CONFIG_CHANGE_MSG).
const BackendConfigChangeMsg BackendRequest = 2

// String returns the specification's name without its VHOST_USER_ prefix.
func (r BackendRequest) String() string {
	if r == BackendConfigChangeMsg {
		return "BACKEND_CONFIG_CHANGE_MSG"
	}
	return fmt.Sprintf("back-end request %d", uint32(r))
}

// Feature bits of SET_FEATURES that are vhost-user's own and not virtio's.
const (
	// FLogAll asks for a log of all writes to guest memory (VHOST_F_LOG_ALL, vhost-user,
	// "Migration").
	FLogAll uint64 = 1 << 26
	// FProtocolFeatures says that protocol features can be negotiated
	// (VHOST_USER_F_PROTOCOL_FEATURES, vhost-user, "Communication").
	FProtocolFeatures uint64 = 1 << 30
)

// ProtocolFeatures is a set of protocol features (vhost-user, "Protocol features").
type ProtocolFeatures uint64

const (
	ProtocolMQ            ProtocolFeatures = 1 << 0  // VHOST_USER_PROTOCOL_F_MQ
	ProtocolLogSHMFD      ProtocolFeatures = 1 << 1  // VHOST_USER_PROTOCOL_F_LOG_SHMFD
	ProtocolReplyAck      ProtocolFeatures = 1 << 3  // VHOST_USER_PROTOCOL_F_REPLY_ACK
	ProtocolBackendReq    ProtocolFeatures = 1 << 5  // VHOST_USER_PROTOCOL_F_BACKEND_REQ
	ProtocolConfig        ProtocolFeatures = 1 << 9  // VHOST_USER_PROTOCOL_F_CONFIG
	ProtocolBackendSendFD ProtocolFeatures = 1 << 10 // VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD
	ProtocolInflightSHMFD ProtocolFeatures = 1 << 12 // VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD
	ProtocolResetDevice   ProtocolFeatures = 1 << 13 // VHOST_USER_PROTOCOL_F_RESET_DEVICE
	// VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS
	ProtocolConfigureMemSlots ProtocolFeatures = 1 << 15
	ProtocolStatus            ProtocolFeatures = 1 << 16 // VHOST_USER_PROTOCOL_F_STATUS

	// ProtocolGetVringBaseInflight is VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT: GET_VRING_BASE
	// may leave requests in flight, recorded in the in-flight region, which the front-end takes
	// along when it migrates. QEMU acknowledges it from 11.1 on, for a device with
	// inflight-migration=on.
	ProtocolGetVringBaseInflight ProtocolFeatures = 1 << 20
)

// Header flags (vhost-user, "Header").
const (
	FlagVersion   uint32 = 0x1    // the only version there is
	FlagReply     uint32 = 1 << 2 // on every reply
	FlagNeedReply uint32 = 1 << 3 // an acknowledgement is wanted (REPLY_ACK)
)

// versionMask is the part of the flags that has the version of the protocol.
const versionMask uint32 = 0x3

// HeaderSize is the length of a message's header in bytes.
const HeaderSize = 12

// Header starts every message, in both directions. All numbers on the wire are in the host's byte
// order.
type Header struct {
	Request uint32 // a Request or, on the back-end channel, a BackendRequest
	Flags   uint32 // FlagVersion, with FlagReply or FlagNeedReply
	Size    uint32 // bytes of payload that follow
}

// Append appends the header as it goes over the wire.
func (h Header) Append(b []byte) []byte {
	b = binary.NativeEndian.AppendUint32(b, h.Request)
	b = binary.NativeEndian.AppendUint32(b, h.Flags)
	return binary.NativeEndian.AppendUint32(b, h.Size)
}

// ParseHeader reads a header from the first HeaderSize bytes of b.
func ParseHeader(b []byte) Header {
	return Header{
		Request: binary.NativeEndian.Uint32(b),
		Flags:   binary.NativeEndian.Uint32(b[4:]),
		Size:    binary.NativeEndian.Uint32(b[8:]),
	}
}

// AppendU64 appends "a single 64-bit integer".
func AppendU64(b []byte, v uint64) []byte { return binary.NativeEndian.AppendUint64(b, v) }

// ParseU64 reads "a single 64-bit integer" from the first 8 bytes of b.
func ParseU64(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }

// Of the 64-bit integer of SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR.
const (
	VringIndexMask uint64 = 0xff   // the ring
	VringNoFD      uint64 = 1 << 8 // no descriptor comes along: poll instead
)

// VringState is "a vring state description": a ring and a number, whose meaning depends on the
// message.
type VringState struct {
	Index uint32 // of the ring
	Num   uint32 // descriptors, an index of the available ring, or 1 for enabled
}

const vringStateSize = 8

// Append appends s as it goes over the wire.
func (s VringState) Append(b []byte) []byte {
	b = binary.NativeEndian.AppendUint32(b, s.Index)
	return binary.NativeEndian.AppendUint32(b, s.Num)
}

// ParseVringState reads a VringState from the first 8 bytes of b.
func ParseVringState(b []byte) VringState {
	return VringState{Index: binary.NativeEndian.Uint32(b), Num: binary.NativeEndian.Uint32(b[4:])}
}

// VringLog is the flag of a VringAddr that asks for a log of the writes to the used ring
// (VHOST_VRING_F_LOG).
const VringLog uint32 = 1 << 0

// VringAddr is "a vring address description", the payload of SET_VRING_ADDR.
type VringAddr struct {
	Index uint32 // of the ring
	Flags uint32 // VringLog or 0
	Desc  uint64 // address of the descriptor table in the front-end's address space
	Used  uint64 // likewise, of the used ring
	Avail uint64 // likewise, of the available ring
	Log   uint64 // guest physical address of the used ring, for the log
}

const vringAddrSize = 40

// Append appends a as it goes over the wire.
func (a VringAddr) Append(b []byte) []byte {
	b = binary.NativeEndian.AppendUint32(b, a.Index)
	b = binary.NativeEndian.AppendUint32(b, a.Flags)
	for _, v := range [...]uint64{a.Desc, a.Used, a.Avail, a.Log} {
		b = binary.NativeEndian.AppendUint64(b, v)
	}
	return b
}

// ParseVringAddr reads a VringAddr from the first 40 bytes of b.
func ParseVringAddr(b []byte) VringAddr {
	return VringAddr{
		Index: binary.NativeEndian.Uint32(b),
		Flags: binary.NativeEndian.Uint32(b[4:]),
		Desc:  binary.NativeEndian.Uint64(b[8:]),
		Used:  binary.NativeEndian.Uint64(b[16:]),
		Avail: binary.NativeEndian.Uint64(b[24:]),
		Log:   binary.NativeEndian.Uint64(b[32:]),
	}
}

// MemoryRegion describes one region of guest memory ("Memory regions description").
type MemoryRegion struct {
	GuestPhys  uint64 // guest physical address
	Size       uint64 // bytes
	UserAddr   uint64 // address in the front-end's address space
	MmapOffset uint64 // bytes into the file whose descriptor comes along
}

const (
	memoryRegionSize = 32
	// maxTableRegions is how many regions SET_MEM_TABLE can carry ("Memory regions description").
	maxTableRegions = 8
)

func (r MemoryRegion) append(b []byte) []byte {
	for _, v := range [...]uint64{r.GuestPhys, r.Size, r.UserAddr, r.MmapOffset} {
		b = binary.NativeEndian.AppendUint64(b, v)
	}
	return b
}

func parseMemoryRegion(b []byte) MemoryRegion {
	return MemoryRegion{
		GuestPhys:  binary.NativeEndian.Uint64(b),
		Size:       binary.NativeEndian.Uint64(b[8:]),
		UserAddr:   binary.NativeEndian.Uint64(b[16:]),
		MmapOffset: binary.NativeEndian.Uint64(b[24:]),
	}
}

// Append appends r as the payload of ADD_MEM_REG and REM_MEM_REG ("Single memory region
// description").
func (r MemoryRegion) Append(b []byte) []byte {
	return r.append(binary.NativeEndian.AppendUint64(b, 0))
}

// ParseMemoryRegion reads the payload of ADD_MEM_REG or REM_MEM_REG from the first 40 bytes of b.
func ParseMemoryRegion(b []byte) MemoryRegion { return parseMemoryRegion(b[8:]) }

// AppendMemoryTable appends the payload of SET_MEM_TABLE.
func AppendMemoryTable(b []byte, regions []MemoryRegion) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(len(regions)))
	b = binary.NativeEndian.AppendUint32(b, 0)
	for _, r := range regions {
		b = r.append(b)
	}
	return b
}

// ParseMemoryTable reads the payload of SET_MEM_TABLE, which is all of b. Its errors are
// *FieldError.
func ParseMemoryTable(b []byte) ([]MemoryRegion, error) {
	if len(b) < 8 {
		return nil, &FieldError{Field: "size", Value: uint64(len(b)), Want: "8 or more"}
	}
	n := binary.NativeEndian.Uint32(b)
	if n < 1 || n > maxTableRegions {
		return nil, &FieldError{Field: "num regions", Value: uint64(n), Want: "1 to 8"}
	}
	if want := 8 + int(n)*memoryRegionSize; len(b) != want {
		return nil, &FieldError{Field: "size", Value: uint64(len(b)), Want: fmt.Sprintf("%d for %d regions", want, n)}
	}
	regions := make([]MemoryRegion, n)
	for i := range regions {
		regions[i] = parseMemoryRegion(b[8+i*memoryRegionSize:])
	}
	return regions, nil
}

// Flags of ConfigSpace in SET_CONFIG: the front-end's reason (VHOST_SET_CONFIG_TYPE_FRONTEND and
// _MIGRATION in QEMU). Front-ends on Rust's vhost crate send the second for a guest's write.
const (
	ConfigWritable  uint32 = 0 // writable fields, by the guest
	ConfigMigration uint32 = 1 // any field, on a migration's target
)

// MaxConfigSize is the largest configuration space in bytes that a message carries; QEMU's limit.
const MaxConfigSize = 256

const configHeaderSize = 12

// ConfigSpace is "virtio device config space", the payload of GET_CONFIG and SET_CONFIG, requests
// and replies.
type ConfigSpace struct {
	Offset uint32 // of Data in the configuration space, in bytes
	Flags  uint32 // of SET_CONFIG: ConfigWritable or ConfigMigration
	Data   []byte // at most MaxConfigSize bytes; in GET_CONFIG its length is what is asked for
}

// Append appends c as it goes over the wire.
func (c ConfigSpace) Append(b []byte) []byte {
	b = binary.NativeEndian.AppendUint32(b, c.Offset)
	b = binary.NativeEndian.AppendUint32(b, uint32(len(c.Data)))
	b = binary.NativeEndian.AppendUint32(b, c.Flags)
	return append(b, c.Data...)
}

// ParseConfigSpace reads a ConfigSpace, which is all of b; Data is a part of b. Its errors are
// *FieldError.
func ParseConfigSpace(b []byte) (ConfigSpace, error) {
	if len(b) < configHeaderSize {
		return ConfigSpace{}, &FieldError{Field: "size", Value: uint64(len(b)), Want: "12 or more"}
	}
	c := ConfigSpace{
		Offset: binary.NativeEndian.Uint32(b),
		Flags:  binary.NativeEndian.Uint32(b[8:]),
		Data:   b[configHeaderSize:],
	}
	if size := binary.NativeEndian.Uint32(b[4:]); uint64(size) != uint64(len(c.Data)) {
		return ConfigSpace{}, &FieldError{Field: "config size", Value: uint64(size),
			Want: fmt.Sprintf("the %d bytes that follow", len(c.Data))}
	}
	return c, nil
}

// LogBase is "log description", the payload of SET_LOG_BASE.
type LogBase struct {
	MmapSize   uint64 // bytes of the log
	MmapOffset uint64 // bytes into the file whose descriptor comes along
}

const logBaseSize = 16

// Append appends d as it goes over the wire.
func (d LogBase) Append(b []byte) []byte {
	b = binary.NativeEndian.AppendUint64(b, d.MmapSize)
	return binary.NativeEndian.AppendUint64(b, d.MmapOffset)
}

// parseLogBase reads a LogBase from the first 16 bytes of b.
func parseLogBase(b []byte) LogBase {
	return LogBase{MmapSize: binary.NativeEndian.Uint64(b), MmapOffset: binary.NativeEndian.Uint64(b[8:])}
}

// Inflight is "Inflight description", the payload of GET_INFLIGHT_FD and SET_INFLIGHT_FD, and of
// the former's reply.
type Inflight struct {
	MmapSize   uint64 // bytes of the region
	MmapOffset uint64 // bytes into the file whose descriptor comes along
	NumQueues  uint16 // in the region
	QueueSize  uint16 // descriptors of each queue
}

// By the specification it has 20 bytes; QEMU sends its structure of 24, padding included.
const (
	inflightSize       = 20
	inflightPaddedSize = 24
)

// Append appends d as QEMU sends it, with 4 bytes of padding.
func (d Inflight) Append(b []byte) []byte {
	b = binary.NativeEndian.AppendUint64(b, d.MmapSize)
	b = binary.NativeEndian.AppendUint64(b, d.MmapOffset)
	b = binary.NativeEndian.AppendUint16(b, d.NumQueues)
	b = binary.NativeEndian.AppendUint16(b, d.QueueSize)
	return append(b, 0, 0, 0, 0)
}

// ParseInflight reads an Inflight, which is all of b, with or without the padding. Its errors are
// *FieldError.
func ParseInflight(b []byte) (Inflight, error) {
	if len(b) != inflightSize && len(b) != inflightPaddedSize {
		return Inflight{}, &FieldError{Field: "size", Value: uint64(len(b)), Want: "20 or 24"}
	}
	return Inflight{
		MmapSize:   binary.NativeEndian.Uint64(b),
		MmapOffset: binary.NativeEndian.Uint64(b[8:]),
		NumQueues:  binary.NativeEndian.Uint16(b[16:]),
		QueueSize:  binary.NativeEndian.Uint16(b[18:]),
	}, nil
}

// payload is the form of a message's payload.
type payload uint8

const (
	payloadNone payload = iota
	payloadU64
	payloadVringFD // u64 of ring index and VringNoFD
	payloadState
	payloadAddr
	payloadTable
	payloadRegion
	payloadConfig
	payloadInflight
	payloadLog
)

// size returns the least and the greatest length in bytes.
func (p payload) size() (least, greatest uint32) {
	switch p {
	case payloadU64, payloadVringFD:
		return 8, 8
	case payloadState:
		return vringStateSize, vringStateSize
	case payloadAddr:
		return vringAddrSize, vringAddrSize
	case payloadTable:
		return 8 + memoryRegionSize, 8 + maxTableRegions*memoryRegionSize
	case payloadRegion:
		return 8 + memoryRegionSize, 8 + memoryRegionSize
	case payloadConfig:
		return configHeaderSize, configHeaderSize + MaxConfigSize
	case payloadLog:
		return logBaseSize, logBaseSize
	case payloadInflight:
		return inflightSize, inflightPaddedSize
	default:
		return 0, 0
	}
}

// maxPayload is the longest payload of any message.
const maxPayload = configHeaderSize + MaxConfigSize
