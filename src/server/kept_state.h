// What outlives a server that is killed: which descriptors are what, the states of its objects (FolioStates), and the
// mappings and unread messages of its clients (KeptSpace). Memory that the holder and one server after the other share.
//
// The holder and its servers also share their descriptor table, so that a descriptor that the kernel made for a server
// in its last moment (a FORK event, a client's packet) is there for the next one. What no entry here names is closed by
// the successor: an entry is made after its descriptors, and ends before they are closed.
#pragma once

#include <array>
#include <atomic>
#include <bitset>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/mutex.h"
#include "mm/core.h"
#include "mm/kept_space.h"
#include "os/fd.h"
#include "os/memory.h"
#include "server/listener.h"
#include "uffda/result.h"

namespace uffda {

/// What a client says once and does not repeat: kept as the kernel wrote it, until it has been acted on. Plain memory.
struct KeptHandshake {
  std::atomic<std::uint32_t> finished;           ///< it has said everything
  alignas(8) std::array<std::byte, 64> bytes;    ///< read last
  alignas(8) std::array<std::byte, 64> control;  ///< the descriptor that came with them, as of recvmsg

  /// That descriptor; -1: none.
  [[nodiscard]] int descriptor() const;
  /// What was read last has been acted on.
  void clear();
};

/// Threads: any.
class KeptState {
 public:
  static constexpr std::size_t kMaxSpaces = 256;  ///< clients and their children
  static constexpr std::size_t kMaxObjects = 256;

  /// Errors: no_memory.
  static Result<std::shared_ptr<KeptState>> create();
  /// That of another holder, whose descriptors are in place. Errors: protocol (it is none of this version).
  static Result<std::shared_ptr<KeptState>> open(os::UniqueFd memory);

  /// Every descriptor that is in use, once, and that of the memory itself.
  [[nodiscard]] std::vector<int> descriptors() const;

  [[nodiscard]] int fd() const { return fd_.get(); }

  /// A server starts: how many there were before it.
  std::uint32_t begin_server();
  /// Clients can connect.
  void note_serving() { layout().serving.store(1); }
  [[nodiscard]] bool serving() const { return layout().serving.load() != 0; }

  /// The socket on which another holder waits for what is here; -1: none.
  [[nodiscard]] int taker() const { return layout().taker.load(); }
  void set_taker(int socket) { layout().taker.store(socket); }

  void keep_listener(Protocol protocol, int socket) { layout().listeners.at(place_of(protocol)).store(socket); }
  /// -1: there is none.
  [[nodiscard]] int listener(Protocol protocol) const { return layout().listeners.at(place_of(protocol)).load(); }
  /// Connections of clients that say what they want once and never connect again, and that this state does not know
  /// yet: they are kept until they are closed.
  [[nodiscard]] std::vector<int> unanswered(Protocol protocol) const;
  [[nodiscard]] KeptHandshake& handshake() const { return layout().handshake; }
  /// Random, and the same for every server.
  [[nodiscard]] const std::array<std::uint8_t, 16>& seed() const { return layout().seed; }

  /// An object is known by where its bytes come from. `number`, from 1 on, is for its mappings. What is kept of it is
  /// given as copies. Errors: no_memory.
  struct Place {
    std::uint32_t number;
    std::optional<KeptFolios> kept;
  };
  Result<Place> find_object(std::string_view key) UFFDA_EXCLUDES(mutex_);
  /// It is there now; its descriptors are copied. Errors: no_memory.
  Result<void> keep_object(std::uint32_t number, int cache, int states);
  /// What nobody asked for is served no more, and is dropped.
  void drop_unclaimed() UFFDA_EXCLUDES(mutex_);

  [[nodiscard]] std::span<KeptSpace> spaces() { return layout().spaces; }
  /// A free one with everything but its token; not `used` yet. Null: there is none.
  KeptSpace* new_space(int fd, std::uint64_t features) UFFDA_EXCLUDES(mutex_);
  /// Before its descriptor is closed.
  void free_space(KeptSpace& space) UFFDA_EXCLUDES(mutex_);
  [[nodiscard]] bool knows(int fd) const;

 private:
  struct Object {
    std::atomic<std::uint32_t> used;
    std::int32_t cache;
    std::int32_t states;
    std::uint64_t key;  // its hash
  };
  struct Layout {
    std::uint64_t magic;
    std::atomic<std::uint32_t> servers;
    std::atomic<std::uint32_t> serving;
    std::array<std::atomic<std::int32_t>, kProtocols> listeners;
    std::atomic<std::int32_t> taker;
    std::array<std::uint8_t, 16> seed;
    KeptHandshake handshake;
    std::array<Object, kMaxObjects> objects;
    std::array<KeptSpace, kMaxSpaces> spaces;
  };
  static constexpr std::uint64_t kMagic = 0x3350454b41444655;  // "UFDAKEP3": the version is in it

  KeptState(os::UniqueFd fd, os::MappedMemory memory) : fd_(std::move(fd)), memory_(std::move(memory)) {}
  static Result<std::shared_ptr<KeptState>> map(os::UniqueFd fd);
  static std::size_t place_of(Protocol protocol) { return static_cast<std::size_t>(protocol); }
  [[nodiscard]] Layout& layout() const { return *reinterpret_cast<Layout*>(memory_.bytes().data()); }

  const os::UniqueFd fd_;
  const os::MappedMemory memory_;
  Mutex mutex_;
  std::bitset<kMaxObjects> claimed_ UFFDA_GUARDED_BY(mutex_);  // by this server
  std::bitset<kMaxSpaces> taken_ UFFDA_GUARDED_BY(mutex_);     // by this server, perhaps not `used` yet
};

}  // namespace uffda
