// The address spaces that clients handed over, each with the loop that serves its faults.
//
// An address space is named by a random token and lives as long as the process: connections come and go, and the end of
// one means nothing. A process that has exited is silent, so once a second somebody asks; its loop, its mappings and
// its descriptor go then. The asking may wait for a client's mmap lock (pitfall: never on a thread that serves another
// client), so it has a thread of its own.
//
// Dropping the last descriptor of a living process's userfaultfd would make its faults resolve as zeroes. A client that
// attaches keeps its own descriptor. A child by EVENT_FORK has no other holder than us: it is kept even when there is
// no room to serve it, waits, and is served when there is.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "mm/address_space.h"
#include "mm/core.h"
#include "mm/fault_loop.h"
#include "os/fd.h"
#include "server/handoff_wire.h"
#include "server/kept_state.h"
#include "server/session.h"
#include "uffda/result.h"

namespace uffda {

class AddressSpaces : public std::enable_shared_from_this<AddressSpaces> {
 public:
  struct Hooks {
    /// Some have gone. From the asking thread, with no lock held.
    std::function<void()> on_change;
    /// A client is about to get SIGBUS, as AddressSpace::LostHook; never of a child by fork, whose process is not
    /// known.
    std::function<void(const os::ProcessHandle& process, const MemoryObject& object)> on_lost;
  };
  /// At most `max_attached` at once, and as many children by fork on top.
  static std::shared_ptr<AddressSpaces> create(std::shared_ptr<Core> core, std::size_t max_attached, Hooks hooks,
                                               std::shared_ptr<KeptState> kept = nullptr);
  ~AddressSpaces();
  AddressSpaces(const AddressSpaces&) = delete;
  AddressSpaces& operator=(const AddressSpaces&) = delete;

  /// Takes a userfaultfd over, on which UFFDIO_API was done with these features, and serves its faults from now on.
  /// A wanted token that is known is of somebody who did not hear our answer, and nothing changes. Threads: any.
  /// Errors: invalid_argument (no userfaultfd, or before UFFDIO_API), gone (its process has exited), no_memory (the
  /// limit). `prepare`: its mappings, where they are known; nothing is read before, so no event is missed, and a
  /// successor finds all of them or nothing. What it fails with is the answer.
  using Prepare = std::function<Result<void>(AddressSpace&)>;
  Result<handoff::Token> attach(HandoffBackend::Attach request, const Prepare& prepare = nullptr);

  /// Takes over what a dead server had, and serves it. Before anybody attaches.
  void adopt(const AddressSpace::ObjectByNumber& object);

  /// Threads: any. Errors: not_found.
  [[nodiscard]] Result<std::shared_ptr<AddressSpace>> find(const handoff::Token& token) const;

  /// Those that live, children by fork included.
  [[nodiscard]] std::vector<std::shared_ptr<AddressSpace>> all() const;
  /// One of them, as it is at the moment.
  struct Client {
    std::shared_ptr<const AddressSpace> space;
    pid_t pid;  ///< 0: nobody knows
    bool forked;
  };
  [[nodiscard]] std::vector<Client> list() const;
  /// How many there are, children by fork included.
  [[nodiscard]] std::size_t count() const;
  /// Drops those whose process has exited. Threads: any.
  void reap();
  /// Ends all loops; nothing can be attached after it. Threads: one.
  void stop();

 private:
  struct Entry {
    handoff::Token token{};
    bool forked = false;
    std::shared_ptr<const os::ProcessHandle> process;  // null: nobody knows
    std::shared_ptr<AddressSpace> space;
    std::unique_ptr<FaultLoop> loop;  // null: waits for room
  };
  using Entries = std::vector<std::shared_ptr<Entry>>;

  AddressSpaces(std::shared_ptr<Core> core, std::size_t max_attached, Hooks hooks, std::shared_ptr<KeptState> kept)
      : core_(std::move(core)), max_attached_(max_attached), hooks_(std::move(hooks)), kept_(std::move(kept)) {}

  [[nodiscard]] std::shared_ptr<Entry> new_entry(std::unique_ptr<os::Userfault> userfault, std::string name,
                                                 os::ProcessHandle process);
  void keep(AddressSpace& space, KeptSpace& place);
  Result<void> start(Entry& entry, int fd, std::uint64_t number, const Prepare& prepare) UFFDA_REQUIRES(mutex_);
  std::shared_ptr<Entry> adopt_one(KeptSpace& place);
  void forget(const Entries& gone);
  void run_reaper();
  void adopt_child(std::shared_ptr<AddressSpace> child);
  void serve_waiting();
  [[nodiscard]] std::size_t count_locked(bool forked) const UFFDA_REQUIRES(mutex_);
  [[nodiscard]] bool full() const;

  const std::shared_ptr<Core> core_;
  const std::size_t max_attached_;
  const Hooks hooks_;
  const std::shared_ptr<KeptState> kept_;  // null: everything ends with this server
  Mutex reap_mutex_;                       // one reaper at a time; taken before mutex_
  mutable Mutex mutex_;
  CondVar changed_;
  Entries entries_ UFFDA_GUARDED_BY(mutex_);
  std::uint64_t attached_ever_ UFFDA_GUARDED_BY(mutex_) = 0;
  bool stopping_ UFFDA_GUARDED_BY(mutex_) = false;
  std::thread reaper_;
};

}  // namespace uffda
