// NBD servers for tests: nbdkit and qemu-nbd as child processes, and a small one of ours that misbehaves on demand.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "os/fd.h"
#include "support/child_process.h"

namespace uffda::test {

/// nbdkit in the foreground on a UNIX socket, which it has made when start returns.
class Nbdkit {
 public:
  /// `arguments`: "--filter=..", plugin, and the parameters of all of them. Errors: unsupported (no nbdkit).
  enum class Access : std::uint8_t { read_only, writable };
  static Result<Nbdkit> start(std::string socket, std::vector<std::string> arguments,
                              Access access = Access::read_only);

  [[nodiscard]] std::string uri(const std::string& export_name = {}) const {
    return "nbd+unix:///" + export_name + "?socket=" + socket_;
  }
  [[nodiscard]] const std::string& socket() const { return socket_; }
  /// SIGKILL; what it had in hand is lost.
  void kill() { process_->kill(); }
  /// The same again after kill().
  Result<void> restart();
  Result<void> restart(std::vector<std::string> arguments);

 private:
  Nbdkit(std::string socket, std::vector<std::string> arguments, Access access)
      : socket_(std::move(socket)), arguments_(std::move(arguments)), access_(access) {}
  std::string socket_;
  std::vector<std::string> arguments_;
  Access access_;
  std::optional<ChildProcess> process_;
};

/// A server of the pattern that follows the protocol except where the test tells it otherwise.
class FakeNbdServer {
 public:
  struct Read {
    std::uint64_t handle;
    std::uint64_t offset;
    std::uint32_t length;
  };
  /// One client, in its thread.
  class Client {
   public:
    Client(int fd, bool structured) : fd_(fd), structured_(structured) {}
    void send(const std::vector<std::byte>& bytes) const;
    /// The right answer.
    void answer(const Read& read) const;
    /// An answer of which only the first `length` bytes are there (structured replies).
    void answer_in_part(const Read& read, std::uint32_t length) const;
    void refuse(const Read& read, std::uint32_t error) const;
    void close() const;
    [[nodiscard]] int fd() const { return fd_; }

   private:
    int fd_;
    bool structured_;
  };
  struct Extent {
    std::uint32_t length;
    std::uint32_t flags;
  };
  struct Script {
    std::uint64_t size = std::uint64_t{1} << 20U;
    bool structured = true;
    bool several_connections = false;
    bool needs_tls = false;
    /// Called with the number of the connection, from 0, before a word is said. False: nothing more of ours.
    std::function<bool(Client&, unsigned)> greet;
    /// Instead of the size of above, by the number of the connection.
    std::function<std::uint64_t(unsigned)> size_of;
    std::function<void(Client&, const Read&)> read;
    std::function<std::vector<Extent>(const Read&)> extents;
  };

  FakeNbdServer(std::string socket, Script script);
  ~FakeNbdServer();
  FakeNbdServer(const FakeNbdServer&) = delete;
  FakeNbdServer& operator=(const FakeNbdServer&) = delete;

  [[nodiscard]] std::string uri() const { return "nbd+unix:///?socket=" + socket_; }
  [[nodiscard]] unsigned connections() const { return connections_; }
  [[nodiscard]] unsigned reads() const { return reads_; }
  [[nodiscard]] unsigned questions() const { return questions_; }

 private:
  class Session;
  void accept_clients();

  const std::string socket_;
  const Script script_;
  os::UniqueFd listening_;
  os::UniqueFd ends_;  ///< readable when it is time to go
  std::atomic<unsigned> connections_{0};
  std::atomic<unsigned> reads_{0};
  std::atomic<unsigned> questions_{0};
  std::thread thread_;
};

}  // namespace uffda::test
