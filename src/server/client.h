// A client of the handoff protocol: what the FUSE host, the supervisor of `uffda exec`, tests and programs of users
// talk to a server with.
//
// One client is one connection, on which one request is answered before the next is sent. Use several for requests that
// should not wait for each other. Every call has a deadline. A call that failed half way (timed_out, gone, protocol)
// closes the connection, because a late answer would be taken for the next one's; the next call connects again.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "server/packet.h"
#include "uffda/units.h"

namespace uffda {

/// Longer than a server waits for its source (30 s by default), so that the server's reason arrives and not our
/// time-out.
inline constexpr Duration kClientWait = std::chrono::seconds(35);

/// An export as a server describes it.
struct RemoteExport {
  std::string name;
  ByteCount size;        // of the object
  ByteCount folio_size;  // the unit of mapping
  bool writable;         // what is written to it goes to its source
  // The page cache: map it MAP_PRIVATE and register MISSING|MINOR before touching it. O_RDONLY, unless the export is
  // writable: then it may be mapped MAP_SHARED, and is registered WP, too.
  os::UniqueFd cache;
};

/// One connection to a server. Move-only. Threads: one at a time.
/// Errors of every call: gone (no server at the path, or it went away), timed_out, protocol (the peer is no uffda
/// server of this version), and whatever the server answered (not_found: no such export; no_memory: one of its limits).
class HandoffClient {
 public:
  /// Connects to the server at `path`; each later call waits at most `wait`.
  static Result<HandoffClient> connect(std::string path, Duration wait = kClientWait);

  /// Looks up an export by its name.
  Result<RemoteExport> open(std::string_view name);

  /// Reads [offset, offset + buffer.size()) of an export through the server's cache, in as many requests as it takes.
  /// Returns the number of bytes, less than asked only at the end of the object. Errors: io (the range could not be
  /// had).
  Result<std::size_t> read(std::string_view name, ByteOffset offset, std::span<std::byte> buffer);

  /// Hands over a userfaultfd (the server gets a copy), opened with `features` (UFFD_FEATURE_*). The token names the
  /// address space.
  Result<handoff::Token> attach(int userfaultfd, std::uint64_t features);

  /// Says that [address, address + length) of the attached address space shows `name` from `offset` on. All three are
  /// multiples of the folio size; the range is registered MISSING|MINOR already.
  Result<void> map(const handoff::Token& token, std::string_view name, Address address, ByteCount length,
                   ByteOffset offset);
  /// The same of a MAP_SHARED mapping that can be written to, registered MISSING|MINOR|WP.
  Result<void> map_shared(const handoff::Token& token, std::string_view name, Address address, ByteCount length,
                          ByteOffset offset);
  Result<void> unmap(const handoff::Token& token, Address address, ByteCount length);

  /// Writes through the server's cache. All of it is within the object. Errors: permission_denied (a read-only export),
  /// no_memory (no space), io. What lies before an error may be written.
  Result<void> write(std::string_view name, ByteOffset offset, std::span<const std::byte> bytes);
  /// Where the bytes of an export end; of one that can grow that is not its size.
  Result<ByteCount> length(std::string_view name) { return resize(name, {handoff::kKeepSize}); }
  /// How many failures somebody has been told of: what `seen` of sync() begins with.
  Result<std::uint64_t> failures_told(std::string_view name);
  /// Moves that end, and says where it is. Errors: unsupported (the size stays), out_of_range, no_memory (no space),
  /// io.
  enum class Resize : std::uint8_t { exactly, grow };
  Result<ByteCount> resize(std::string_view name, ByteCount length, Resize how = Resize::exactly);
  /// What was written to the range before is stored. `seen`: how many failures the caller has been told of, 0 at first.
  /// Errors: what the source said, to this caller once.
  Result<void> sync(std::string_view name, ByteRange range, std::uint64_t& seen);

  /// An open /dev/userfaultfd from the server, for a process that may not open it itself. Errors: permission_denied,
  /// with the remedy.
  Result<os::UniqueFd> device();

  /// Asks for notices; from now on this connection is for next_notice() only.
  Result<void> watch();
  /// Waits for a notice. Errors: timed_out (none until then; ask again), gone (the server ended or died).
  Result<handoff::Notice> next_notice(Deadline deadline);

  /// What the server counted, as JSON.
  Result<std::string> stats();

  /// Ends the connection; a later call connects again.
  void close() { socket_.reset(); }

  /// The connection's descriptor, to poll for notices; -1 while there is none.
  [[nodiscard]] int socket() const { return socket_.get(); }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  using Buffer = std::array<std::byte, handoff::kMaxMessage>;

  HandoffClient(std::string path, Duration wait);

  /// Sends a request and receives its answer, whose type and Error have been checked. The packet lies in buffer_.
  template <typename Request>
  Result<handoff::Packet> ask(const Request& request, int passed = -1);
  Result<handoff::Packet> ask_bytes(std::span<const std::byte> request, std::span<const std::byte> tail,
                                    handoff::Type type, int passed);
  Result<void> map_as(handoff::Type type, const handoff::Token& token, std::string_view name, ByteRange place,
                      ByteOffset offset);

  std::string path_;
  Duration wait_;
  os::UniqueFd socket_;
  std::unique_ptr<Buffer> buffer_;
};

}  // namespace uffda
