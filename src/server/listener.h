// The socket that a server listens on, and who may connect to it.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "os/fd.h"
#include "uffda/result.h"

namespace uffda {

/// What is spoken at a socket.
enum class Protocol : std::uint8_t {
  handoff,      ///< docs/protocols/handoff.md: packets
  firecracker,  ///< docs/protocols/firecracker.md: a stream
  criu,         ///< lazy_pages_socket.h: a stream
};
inline constexpr std::size_t kProtocols = 3;
std::string_view to_string(Protocol protocol);
std::optional<Protocol> protocol_named(std::string_view name);

/// A listening socket of its protocol's kind at a path, removed with this object if it is still ours. Threads: one at a
/// time.
class Listener {
 public:
  /// The directory must exist. The socket is 0600, or 0666 when others may connect, too (then SO_PEERCRED alone
  /// decides). A socket that a dead server left is replaced. Errors: invalid_argument (path empty or too long, or
  /// something else is there), not_found (no such directory), busy (a server listens there), permission_denied.
  static Result<Listener> create(Protocol protocol, std::string path, std::vector<uid_t> allowed_others);
  /// That of a dead server or a service manager, on which clients wait. Its path stays, unless own_path() is called.
  static Listener adopt(Protocol protocol, os::UniqueFd socket, std::string path, std::vector<uid_t> allowed_others);
  /// The path goes with this object from now on.
  void own_path();
  Listener(Listener&& other) noexcept = default;
  Listener& operator=(Listener&& other) noexcept = delete;
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;
  ~Listener();

  [[nodiscard]] Protocol protocol() const { return protocol_; }
  [[nodiscard]] int fd() const { return socket_.get(); }
  [[nodiscard]] const std::string& path() const { return path_; }

  struct Accepted {
    os::UniqueFd socket;
    pid_t pid;
    uid_t uid;
  };
  /// The next connection, close-on-exec. Errors: again (none), no_memory (no descriptor left: the connection stays in
  /// the queue).
  Result<Accepted> accept() const;
  /// Errors: permission_denied, naming who may.
  [[nodiscard]] Result<void> allows(const Accepted& peer) const;

 private:
  Listener(Protocol protocol, os::UniqueFd socket, std::string path, std::vector<uid_t> others);

  Protocol protocol_;
  os::UniqueFd socket_;
  std::string path_;
  std::vector<uid_t> others_;
  dev_t device_ = 0;  // of the path, so that another's socket is not removed
  ino_t inode_ = 0;
};

}  // namespace uffda
