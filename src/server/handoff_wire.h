// The handoff protocol on the wire (docs/protocols/handoff.md). Plain structs, so that a C library or the exec shim
// needs nothing else.
//
// A SOCK_SEQPACKET UNIX socket; one message each way is one packet; descriptors travel by SCM_RIGHTS with the packet
// that names them. All integers are in the byte order of the machine (both ends are on it). Every reply carries the
// type of its request with kReply set, or is an Error. A connection is a sequence of request and reply; several
// connections may be open at once.
#pragma once

#include <stdint.h>  // NOLINT(modernize-deprecated-headers): this header is C, too

namespace uffda::handoff {

inline constexpr uint32_t kMagic = 0x41444655;  // "UFDA"
inline constexpr uint16_t kVersion = 1;
inline constexpr uint16_t kReply = 0x8000;
inline constexpr uint32_t kMaxMessage = 192 * 1024;  // the whole packet
inline constexpr uint32_t kMaxRead = 128 * 1024;     // bytes of one Read
inline constexpr uint32_t kNameSize = 128;           // with the final zero
inline constexpr uint32_t kTextSize = 512;           // with the final zero
inline constexpr uint32_t kTokenSize = 16;

enum class Type : uint16_t {
  kOpen = 1,    // OpenRequest -> OpenReply + descriptor of the page cache, O_RDONLY unless kWritable is in the flags
  kAttach = 2,  // AttachRequest + userfaultfd -> AttachReply
  kMap = 3,     // MapRequest -> Header
  kUnmap = 4,   // UnmapRequest -> Header
  kRead = 5,    // ReadRequest -> ReadReply with the bytes
  kDevice = 6,  // Header -> Header + an open /dev/userfaultfd
  kWatch = 7,   // Header -> Header, then any number of Notice packets, unasked
  kStats = 8,   // Header -> Header followed by JSON text
  kNotice = 9,
  kError = 10,
  kMapShared = 11,  // MapRequest -> Header
  kWrite = 12,      // WriteRequest with the bytes -> Header
  kSync = 13,       // SyncRequest -> SyncReply
  kSize = 14,       // SizeRequest -> SizeReply
  kTakeover = 15,   // Header -> Header, then Kept packets from the server's holder; Header -> Header when all is taken
  kAttachAs = 16,   // AttachAsRequest + userfaultfd -> AttachReply
};

struct Header {
  uint32_t magic;
  uint16_t version;
  uint16_t type;    // Type, with kReply in an answer
  uint32_t size;    // of the whole packet in bytes, this header included
  uint32_t status;  // 0, or in an Error 1 + uffda::Errc
};

struct Token {
  uint8_t bytes[kTokenSize];  // names an attached address space; random, known to its owner only
};

struct OpenRequest {
  Header header;
  char name[kNameSize];
};
struct OpenReply {
  Header header;
  uint64_t size;        // of the object in bytes
  uint32_t folio_size;  // in bytes
  uint32_t flags;
};
inline constexpr uint32_t kWritable = 1;  // in OpenReply: what is written to the export goes to its source

struct AttachRequest {
  Header header;
  uint64_t features;  // that the userfaultfd was opened with (UFFD_FEATURE_*)
};
/// The same with a token of the client's choice, 16 random bytes. Who does not hear the answer, because the server was
/// killed, asks again with the same one and is attached once.
struct AttachAsRequest {
  Header header;
  uint64_t features;
  Token token;  // not all zeroes
};
struct AttachReply {
  Header header;
  Token token;
};

/// [address, address + length) of the attached address space shows the export from `offset` on. It is registered
/// MISSING|MINOR already. Replaces what the server knew of that range. Address, length and offset are multiples of the
/// folio size. As kMapShared: a MAP_SHARED mapping of a writable export, registered MISSING|MINOR|WP, with a
/// userfaultfd that has UFFD_FEATURE_PAGEFAULT_FLAG_WP and UFFD_FEATURE_WP_HUGETLBFS_SHMEM. The server lifts the
/// protection of a folio when it is written to for the first time.
struct MapRequest {
  Header header;
  Token token;
  char name[kNameSize];
  uint64_t address;
  uint64_t length;
  uint64_t offset;
};
struct UnmapRequest {
  Header header;
  Token token;
  uint64_t address;
  uint64_t length;
};

struct ReadRequest {
  Header header;
  char name[kNameSize];
  uint64_t offset;
  uint32_t length;  // at most kMaxRead; cut at the end of the object
  uint32_t reserved;
};
struct ReadReply {
  Header header;  // the bytes follow: size - sizeof(Header)
};

inline constexpr uint32_t kMaxWrite = 128 * 1024;  // bytes of one Write
struct WriteRequest {
  Header header;  // the bytes follow: size - sizeof(WriteRequest), all of them within the object
  char name[kNameSize];
  uint64_t offset;
};

/// What was written to the range before, through a mapping or by kWrite, is stored by the source and outlives a loss of
/// power when the answer comes.
struct SyncRequest {
  Header header;
  char name[kNameSize];
  uint64_t offset;
  uint64_t length;
  uint64_t seen;  // `failures` of the last reply to whoever asks; at first of a Sync of length 0, which stores nothing
};
struct SyncReply {
  Header header;
  uint64_t failures;  // of the source to store something, ever
  uint32_t error;     // 0, or 1 + uffda::Errc: something failed since `seen`, or this range is not stored
  uint32_t reserved;
  char text[kTextSize];
};

/// Asks where the bytes of an export end, or moves that end: of an export that can grow it is not OpenReply's size,
/// which is the most it can have. Behind the end memory reads as zeroes. A Write behind the end moves it.
struct SizeRequest {
  Header header;
  char name[kNameSize];
  uint64_t size;   // kKeepSize: asks only
  uint32_t flags;  // kGrowOnly: the end does not come nearer
  uint32_t reserved;
};
inline constexpr uint32_t kGrowOnly = 1;
inline constexpr uint64_t kKeepSize = UINT64_MAX;
struct SizeReply {
  Header header;
  uint64_t size;
};

/// One descriptor that a successor takes over, with the number that it has to have there. The first is the memory in
/// which everything else is found; after the last comes one without a descriptor, whose number is -1.
struct Kept {
  Header header;
  int32_t number;
  uint32_t reserved;
};

/// Something that an operator should hear: a range that could not be had and was poisoned.
struct Notice {
  Header header;
  char name[kNameSize];
  uint64_t offset;
  uint64_t length;
  char text[kTextSize];
};

struct ErrorReply {
  Header header;
  char text[kTextSize];
};

}  // namespace uffda::handoff
