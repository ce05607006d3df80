// For tests of the handoff protocol: a server in a process of its own, and clients in theirs.
//
// The test program itself stays free of threads, so that forking it is sound. What runs in a client process reports by
// its exit status: 0 is right; UFFDA_CLIENT_CHECK says on standard error what was not.
#pragma once

#include <sys/types.h>

#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "os/fd.h"
#include "os/memory.h"
#include "os/userfault.h"
#include "server/client.h"
#include "server/serve.h"
#include "support/mm_kernel.h"

#define UFFDA_CLIENT_CHECK(condition)                                                        \
  do {                                                                                       \
    if (!(condition)) {                                                                      \
      std::fprintf(stderr, "%s:%d: client: not true: %s\n", __FILE__, __LINE__, #condition); \
      return 1;                                                                              \
    }                                                                                        \
  } while (false)

namespace uffda::test {

/// A directory of its own, removed with what is in it.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  [[nodiscard]] std::string path(std::string_view name) const;

 private:
  std::string path_;
};

/// Writes a file of the Pattern.
void write_pattern_file(const std::string& path, ByteCount size);

/// A process forked from this one that runs `body` and exits with what it returns. It is killed by SIGALRM after a
/// minute.
class ForkedProcess {
 public:
  explicit ForkedProcess(const std::function<int()>& body);
  ForkedProcess(ForkedProcess&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}
  ForkedProcess& operator=(ForkedProcess&&) = delete;
  ForkedProcess(const ForkedProcess&) = delete;
  ForkedProcess& operator=(const ForkedProcess&) = delete;
  ~ForkedProcess();  ///< kills it if it was not waited for

  [[nodiscard]] pid_t pid() const { return pid_; }
  void signal(int number) const;
  /// Exit status, or 128 and the signal.
  int wait();

 private:
  pid_t pid_;
};

/// Opens once, and is waited for by another process.
class Gate {
 public:
  Gate();
  void open() const;
  void wait() const;
  [[nodiscard]] bool is_open() const;

 private:
  os::UniqueFd read_;
  os::UniqueFd write_;
};

/// `uffda serve` in a process of its own. Its socket is `server.sock` of the directory unless the options say
/// otherwise.
class TestServer {
 public:
  TestServer(const TempDir& directory, ServeOptions options);

  [[nodiscard]] bool ready() const { return ready_; }
  [[nodiscard]] const std::string& socket() const { return socket_; }
  [[nodiscard]] pid_t pid() const { return process_->pid(); }
  void kill() const { process_->signal(SIGKILL); }
  void terminate() const { process_->signal(SIGTERM); }
  int wait() { return process_->wait(); }
  /// How many descriptors it has open.
  [[nodiscard]] std::size_t descriptors() const;

 private:
  std::string socket_;
  std::unique_ptr<ForkedProcess> process_;
  bool ready_ = false;
};

/// One number of a server's report, by its JSON pointer ("/faults/cached"). Empty if it cannot be had.
std::int64_t stat_of(const std::string& socket, const std::string& pointer);

/// Whether a thread of this process sleeps in a fault that nobody has resolved.
bool blocked_in_fault(pid_t thread);

/// A userfaultfd of this process, handed to a server.
struct Attached {
  HandoffClient client;
  std::unique_ptr<os::Userfault> userfault;
  handoff::Token token;
};
/// The events that a client should have: the server's picture of its mappings stays true by them.
std::uint64_t usual_features();
Result<Attached> attach_to(const std::string& socket, std::uint64_t features);

/// Maps [offset, offset + length) of an export as the protocol says: PROT_NONE, registered, told, then `protection`. A
/// length of 0 is all from the offset on. What is mapped beyond the object's last page (`extra`) is registered, and the
/// server is not told of it.
struct MapWish {
  ByteOffset offset{};
  ByteCount length{};
  ByteCount extra{};
  int protection = 1;  // PROT_READ
};
Result<os::MappedMemory> map_export(Attached& attached, std::string_view name, const MapWish& wish = {});

/// False when this machine lets nobody use userfaultfd: tests skip then.
bool userfaultfd_works();

}  // namespace uffda::test
