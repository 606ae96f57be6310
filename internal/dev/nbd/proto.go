package nbd

import (
	"syscall"

	"vdev/devsw"
)

// The numbers of the protocol: doc/proto.md of the NetworkBlockDevice project. Everything is
// big-endian.

// What a connection begins with ("newstyle negotiation").
const (
	nbdMagic      = 0x4e42444d41474943 // "NBDMAGIC"
	oldStyleMagic = 0x00420281861253
	optMagic      = 0x49484156454f5054 // "IHAVEOPT"
	optReplyMagic = 0x3e889045565a9

	flagFixedNewstyle = 1 << 0 // handshake and client flags
	flagNoZeroes      = 1 << 1
)

// Options, NBD_OPT_*.
const (
	optExportName      = 1
	optAbort           = 2
	optStartTLS        = 5
	optGo              = 7
	optStructuredReply = 8
	optExtendedHeaders = 11
)

// Replies to options, NBD_REP_*, and what NBD_REP_INFO tells, NBD_INFO_*.
const (
	repAck              = 1
	repInfo             = 3
	repErrUnsup         = 1<<31 + 1
	repErrPolicy        = 1<<31 + 2
	repErrInvalid       = 1<<31 + 3
	repErrPlatform      = 1<<31 + 4
	repErrTLSReqd       = 1<<31 + 5
	repErrUnknown       = 1<<31 + 6
	repErrShutdown      = 1<<31 + 7
	repErrBlockSizeReqd = 1<<31 + 8
	repErrTooBig        = 1<<31 + 9
	repErrExtHeaderReqd = 1<<31 + 10

	infoExport    = 0
	infoBlockSize = 3
)

// Transmission flags, NBD_FLAG_*.
const (
	hasFlags        = 1 << 0
	readOnly        = 1 << 1
	sendFlush       = 1 << 2
	sendFUA         = 1 << 3
	rotational      = 1 << 4
	sendTrim        = 1 << 5
	sendWriteZeroes = 1 << 6
	canMultiConn    = 1 << 8
	sendFastZero    = 1 << 11
)

// Requests, NBD_CMD_*, and their flags, NBD_CMD_FLAG_*.
const (
	requestMagic         = 0x25609513
	extendedRequestMagic = 0x21e41c71
	requestSize          = 28
	extendedRequestSize  = 32

	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6

	cmdFlagFUA        = 1 << 0
	cmdFlagNoHole     = 1 << 1
	cmdFlagFastZero   = 1 << 4
	cmdFlagPayloadLen = 1 << 5
)

// Replies: simple, structured and extended ones, and the types of chunks, NBD_REPLY_TYPE_*.
const (
	simpleReplyMagic     = 0x67446698
	structuredReplyMagic = 0x668e33ef
	extendedReplyMagic   = 0x6e8a278c
	simpleReplySize      = 16
	structuredReplySize  = 20
	extendedReplySize    = 32

	replyFlagDone = 1 << 0

	replyNone        = 0
	replyOffsetData  = 1
	replyOffsetHole  = 2
	replyErrorBit    = 1 << 15
	replyError       = replyErrorBit + 1
	replyErrorOffset = replyErrorBit + 2
)

const (
	// maxString is the longest string that the protocol has, in bytes.
	maxString = 4096
	// defaultMaxBlock is the largest payload where the server does not say, in bytes.
	defaultMaxBlock = 32 << 20
	// eShutdown is the NBD error that says that the server is going.
	eShutdown = 108
)

// errno gives what an NBD error means here ("Error values"). What the protocol does not know is to
// be taken for EINVAL.
func errno(e uint32) devsw.Errno {
	switch e {
	case 0:
		return 0
	case 1:
		return devsw.EPERM
	case 5, eShutdown:
		return devsw.EIO
	case 12:
		return devsw.ENOMEM
	case 28:
		return devsw.ENOSPC
	case 75:
		return syscall.EOVERFLOW
	case 95:
		return devsw.EOPNOTSUPP
	}
	return devsw.EINVAL
}
