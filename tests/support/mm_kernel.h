// Help for tests on the real userfaultfd: reads that survive SIGBUS, child processes that hand over their userfaultfd,
// and what the kernel says about waiting threads.
#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "mm/address_space.h"
#include "mm/core.h"
#include "mm/fault_loop.h"
#include "mm/memory_object.h"
#include "os/fd.h"

namespace uffda::test {

/// Reads a byte; nullopt if that raised SIGBUS or SIGSEGV. Installs its handler at the first call. Threads: any.
std::optional<std::byte> touch(const std::byte* at);
/// The handler that touch() needs, under whatever is installed afterwards.
void install_touch_handler();

/// The userfaultfd cannot be had here: why. Otherwise empty.
std::string userfaultfd_refused();

/// False if `condition` does not come true in kPatience.
[[nodiscard]] bool eventually(const std::function<bool()>& condition);
/// Threads that wait for an answer, whether their message was read or not (fdinfo of the descriptor).
std::size_t waiting_faults(int userfaultfd);

/// What two processes of a test tell each other.
struct Note {
  std::uint64_t a = 0;
  std::uint64_t b = 0;
  std::uint64_t c = 0;
};
bool send_note(int socket, const Note& note, int fd = -1);
/// nullopt: the other side is gone.
std::optional<Note> receive_note(int socket, os::UniqueFd* fd = nullptr);

/// A child process that runs `body` with its end of a socket pair and exits with its result. Start it while this
/// process has one thread.
class Child {
 public:
  explicit Child(const std::function<int(int socket)>& body);
  ~Child();  ///< kills it if it still runs
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  [[nodiscard]] int socket() const { return socket_.get(); }
  [[nodiscard]] pid_t pid() const { return pid_; }
  /// Exit status, as of waitpid.
  int wait();

 private:
  pid_t pid_ = -1;
  os::UniqueFd socket_;
};

/// In the child: what a client of the server does. Maps the memory that the parent sends, registers it and hands its
/// userfaultfd over.
struct ClientMemory {
  std::byte* data = nullptr;
  std::uint64_t size = 0;
  int userfaultfd = -1;
};
std::optional<ClientMemory> client_map(int socket, std::uint64_t extra_features = 0);

/// In the parent: the other half of it.
struct Served {
  std::shared_ptr<AddressSpace> space;
  std::unique_ptr<FaultLoop> loop;
  Address base;
};
std::optional<Served> serve(const std::shared_ptr<Core>& core, const std::shared_ptr<MemoryObject>& object,
                            const Child& child);

/// Memory of this process over an object of any type, with handler threads: what the library does, for types that it
/// does not know.
struct LocalMemory {
  static std::unique_ptr<LocalMemory> create(const std::shared_ptr<Core>& core,
                                             const std::shared_ptr<MemoryObject>& object);
  ~LocalMemory();
  [[nodiscard]] const std::byte* data() const { return mapping.bytes().data(); }
  std::shared_ptr<AddressSpace> space;
  std::unique_ptr<FaultLoop> loop;
  os::MappedMemory mapping;
};

}  // namespace uffda::test
