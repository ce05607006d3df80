// One client's conversation: a request comes in, an answer goes out. No socket and no system call in here, so that it
// is tested and fuzzed with packets from anywhere and a backend of the test's own.
//
//   packet -> Session::handle -> (checks the packet, asks the backend) -> Answer -> packet
//
// What a peer sends is checked here as far as it concerns the protocol (sizes, names, who may carry a descriptor) and
// by the backend as far as it concerns memory (ranges, limits, tokens). Nothing in a request decides how much memory is
// allocated: a session has one buffer for a Read, of the protocol's largest size, made when it is first needed.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "os/fd.h"
#include "os/other_process.h"
#include "server/handoff_wire.h"
#include "server/packet.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda {

/// What sessions ask for. Threads: any, concurrently.
class HandoffBackend {
 public:
  struct Opened {
    ByteCount size;
    ByteCount folio_size;
    bool writable;
    os::UniqueFd cache;  // O_RDONLY unless writable
  };
  /// Where a client maps an export.
  struct MapPlace {
    Address address;
    ByteCount length;
    ByteOffset offset;
  };

  enum class Resize : std::uint8_t {
    exactly,
    grow,  ///< the end does not come nearer
  };

  virtual ~HandoffBackend() = default;
  virtual Result<Opened> open_export(const std::string& name) = 0;
  struct Attach {
    os::UniqueFd userfaultfd;
    std::uint64_t features = 0;
    handoff::Token wanted{};    ///< the token that it shall have; all zeroes: a random one
    os::ProcessHandle process;  ///< who handed it over; pid 0: nobody knows
  };
  virtual Result<handoff::Token> attach(Attach request) = 0;
  virtual Result<void> map(const handoff::Token& token, const std::string& name, const MapPlace& place) = 0;
  virtual Result<void> map_shared(const handoff::Token& token, const std::string& name, const MapPlace& place) = 0;
  virtual Result<void> unmap(const handoff::Token& token, Address address, ByteCount length) = 0;
  /// Fills `bytes` from `offset` on; returns how many, fewer only at the end of the object.
  virtual Result<std::size_t> read(const std::string& name, ByteOffset offset, std::span<std::byte> bytes) = 0;
  /// All of the bytes, or an error.
  virtual Result<void> write(const std::string& name, ByteOffset offset, std::span<const std::byte> bytes) = 0;
  /// Moves the end of an export, unless `size` is kKeepSize. Where it ends.
  virtual Result<ByteCount> resize(const std::string& name, std::uint64_t size, Resize how) = 0;
  /// As MemoryObject::sync; of an empty range: how many failures somebody was told of.
  virtual Result<void> sync(const std::string& name, ByteRange range, std::uint64_t& seen) = 0;
  virtual Result<os::UniqueFd> open_device() = 0;
  virtual Result<std::string> stats() = 0;
  /// Whether somebody may take over; what is dirty is stored.
  virtual Result<void> prepare_takeover() = 0;
};

/// What to send back. The spans lie in the session and stay valid until its next call.
struct Answer {
  enum class Then : std::uint8_t {
    go_on,      ///< wait for the next request
    watch,      ///< send notices from now on
    hand_over,  ///< everything is the peer's
    close,      ///< the peer does not keep to the protocol
  };
  std::span<const std::byte> head;
  std::span<const std::byte> tail;
  os::UniqueFd passed;
  Then then = Then::go_on;
};

/// Threads: one at a time.
class Session {
 public:
  /// `socket`: of the connection, to tell who is at the other end; -1: nobody knows.
  explicit Session(HandoffBackend& backend, int socket = -1) : backend_(backend), socket_(socket) {}

  /// No request is longer than this: a receive buffer of that size holds any.
  static constexpr std::size_t kMaxRequest = sizeof(handoff::WriteRequest) + handoff::kMaxWrite;

  /// Answers one packet whose header was checked (handoff::check_header). Always has something to say.
  Answer handle(handoff::Packet packet);
  /// Answers what was no packet at all; the connection ends with it.
  Answer refuse(const Error& error);

 private:
  Result<Answer> dispatch(handoff::Packet& packet);
  Result<Answer> open(const handoff::Packet& packet);
  Result<Answer> attach(handoff::Packet& packet, std::uint64_t features, const handoff::Token& wanted);
  Result<Answer> attach_as(handoff::Packet& packet);
  Result<Answer> map(const handoff::Packet& packet);
  Result<Answer> write(const handoff::Packet& packet);
  Result<Answer> sync(const handoff::Packet& packet);
  Result<Answer> size(const handoff::Packet& packet);
  Result<Answer> unmap(const handoff::Packet& packet);
  Result<Answer> read(const handoff::Packet& packet);
  Result<Answer> device(const handoff::Packet& packet);
  Result<Answer> watch(const handoff::Packet& packet);
  Result<Answer> stats(const handoff::Packet& packet);
  Result<Answer> take_over(const handoff::Packet& packet);

  template <typename Message>
  Answer answer(const Message& message);
  Answer done(handoff::Type type);
  Answer with_tail(handoff::Type type, std::span<const std::byte> tail);

  HandoffBackend& backend_;
  const int socket_;
  alignas(std::uint64_t) std::array<std::byte, sizeof(handoff::SyncReply)> reply_{};
  std::unique_ptr<std::array<std::byte, handoff::kMaxRead>> read_buffer_;
  std::string text_;
};

}  // namespace uffda
