// The simulated kernel: memory files with a page cache, processes with page tables, and userfaultfd on top of them.
//
// It keeps what the core relies on (and what it must not rely on):
//   - a fault finds a page table entry or none; none in a registered range is MINOR if the cache has the page, else
//     MISSING; the message is queued, the entry looked at again, and the thread sleeps until a wake makes it retry;
//   - whoever maps a file without registration leaves zero pages in its cache; a hole unmaps the page everywhere;
//   - REMOVE, UNMAP, REMAP and FORK raise mmap_changing until the event is read: resolutions answer EAGAIN meanwhile;
//   - faults are read before events; a private mapping copies on write, and its copy survives a hole;
//   - CONTINUE and COPY replace a marker, of poison or of write protection; POISON and MOVE want an empty entry;
//   - what is write-protected stays so where nothing is mapped: an entry without a page is then a marker. A write to a
//     protected page is a WP fault, or goes on and lifts it (WP_ASYNC);
//   - mappings are split and merged by registering, and a resolution lies inside one of them.
// Everything between two points of the scheduler is atomic; each page of an ioctl and of a write is a step of its own.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "os/userfault.h"
#include "sim/scheduler.h"

namespace uffda::sim {

inline constexpr std::uint64_t kPage = kPageSize.value;

using PageBytes = std::array<std::byte, kPageSize.value>;
using PageRef = std::shared_ptr<PageBytes>;
/// What absent anonymous memory reads as. Never written: who writes gets a page of his own.
const PageRef& zero_page();

/// A memory file.
struct File {
  int fd = -1;
  ByteCount size;
  std::map<std::uint64_t, PageRef> cache;
  std::string name;
  std::shared_ptr<void> memory;  ///< of a file that the core itself maps

  [[nodiscard]] std::uint64_t pages() const { return align_up(size.value, kPageSize.value) / kPageSize.value; }
};

struct Pte {
  enum class Kind : std::uint8_t { none, cached, own, poison };
  Kind kind = Kind::none;
  bool protected_ = false;  ///< by userfaultfd; without a page: a marker
  bool written = false;     ///< own, and not what was copied in
  bool forked = false;      ///< own, and a child had it
  PageRef page;

  /// Nothing, or nothing but a marker.
  [[nodiscard]] bool vacant() const { return kind == Kind::none || kind == Kind::poison; }
  [[nodiscard]] bool empty() const { return kind == Kind::none && !protected_; }
};

class Context;

/// What a mapping shows, for whoever checks what is read there. Travels with it through mremap and fork.
struct Shows {
  std::size_t object = 0;
  bool attached = false;             ///< the core knows of it
  bool detached = false;             ///< and was told that it goes
  bool copied = false;               ///< anonymous memory that begins with the object's bytes
  std::set<std::uint64_t> dropping;  ///< pages of that which are being given back, or were
  std::set<std::uint64_t> dropped;   ///< and were: zeroes from now on, until they are written to
};

struct Vma {
  std::uint64_t start = 0;
  std::uint64_t length = 0;
  std::shared_ptr<File> file;  ///< null: anonymous
  std::uint64_t offset = 0;    ///< in the file, and in the object
  bool shared = false;
  bool accessible = true;  ///< false: PROT_NONE
  std::shared_ptr<Context> uffd;
  UffdModes modes;
  std::shared_ptr<Shows> shows;

  [[nodiscard]] std::uint64_t end() const { return start + length; }
  [[nodiscard]] std::uint64_t index_of(std::uint64_t address) const { return (offset + address - start) / kPage; }
  [[nodiscard]] bool armed(UffdMode mode) const { return uffd != nullptr && modes.has(mode); }
};

/// A lock of the kernel's own, like mmap_lock.
class KernelLock {
 public:
  void lock();
  void unlock();
  void lock_shared();
  void unlock_shared();

 private:
  bool written_ = false;
  unsigned readers_ = 0;
  WaitList changed_;
};

enum class Access : std::uint8_t { read, write };

/// What became of a touch, and what was read.
struct Touched {
  enum class Outcome : std::uint8_t { ok, sigbus, segv, killed };
  Outcome outcome = Outcome::ok;
  std::shared_ptr<const Shows> shows;
  std::uint64_t page = 0;  ///< of the object
  bool own_write = false;  ///< the bytes are this process's own
  PageBytes bytes{};
};

/// What a store does to the page.
using Store = std::function<void(PageBytes&)>;

class Kernel;

/// A process: its mappings and its page table. Fibers of it call touch().
class Process {
 public:
  Process(Kernel& kernel, unsigned id) : kernel_(kernel), id_(id) {}

  [[nodiscard]] unsigned id() const { return id_; }
  [[nodiscard]] bool alive() const { return alive_; }

  /// Resolves a SIGBUS in the faulting thread (UFFD_FEATURE_SIGBUS): true if the access should be tried again.
  using InThread = std::function<bool(Address, Access)>;
  void handle_in_thread(InThread handler) { in_thread_ = std::move(handler); }

  void mmap(Vma vma);
  /// Until now it was PROT_NONE.
  void make_accessible(std::uint64_t start);
  /// Each raises and waits for its event where the userfaultfd has it.
  void munmap(std::uint64_t start, std::uint64_t length);
  bool mremap(std::uint64_t from, std::uint64_t to, std::uint64_t length);
  void madvise_dontneed(std::uint64_t start, std::uint64_t length);
  /// `born` hears of the child before anybody can touch or serve it.
  std::shared_ptr<Process> fork(const std::function<void(const std::shared_ptr<Process>&)>& born);
  /// Every thread of it that waits is gone.
  void exit();

  /// Reads (or writes, then reads) a page as a thread of the process does: faults, sleeps and retries.
  Touched touch(std::uint64_t address, Access access, const Store& store = nullptr);

  [[nodiscard]] Vma* find(std::uint64_t address);
  /// The mapping there, or the next; null if there is none.
  [[nodiscard]] const Vma* find_from(std::uint64_t address) const;
  [[nodiscard]] bool maps_any(std::uint64_t start, std::uint64_t length) const;
  [[nodiscard]] Pte pte(std::uint64_t page) const;
  [[nodiscard]] std::shared_ptr<Context> context() const { return context_; }
  void set_context(std::shared_ptr<Context> context) { context_ = std::move(context); }

 private:
  friend class Context;
  friend class Kernel;

  enum class Step : std::uint8_t { done, retry, fault };
  /// Fault: `reason` says which; nothing was changed.
  Step access(std::uint64_t address, Access access, const Store& store, Touched& touched, UffdMode& reason);
  Step fault(const Vma& vma, std::uint64_t page, Access access, UffdMode& reason);
  [[nodiscard]] bool watched(std::uint64_t start, std::uint64_t length, std::uint64_t feature) const;
  void send_unmap(std::uint64_t start, std::uint64_t length);
  void split_at(std::uint64_t address);
  void merge(std::uint64_t start, std::uint64_t end);
  void cut(std::uint64_t start, std::uint64_t end);
  void zap(std::uint64_t start, std::uint64_t end);
  void discard(std::uint64_t page);

  Kernel& kernel_;
  unsigned id_;
  bool alive_ = true;
  std::map<std::uint64_t, Vma> vmas_;  // by start
  std::map<std::uint64_t, Pte> table_;
  std::shared_ptr<Context> context_;
  InThread in_thread_;
  KernelLock mmap_lock_;
};

/// What a resolution says: its errno, and what it wrote in its field of progress.
struct Resolved {
  int error = 0;
  std::optional<std::int64_t> field;
};

/// A userfaultfd. Its ioctls take modes as the kernel's do, and check them.
class Context {
 public:
  Context(Process& process, std::uint64_t features, int fd) : process_(&process), features_(features), fd_(fd) {}

  [[nodiscard]] int fd() const { return fd_; }
  [[nodiscard]] std::uint64_t features() const { return features_; }
  [[nodiscard]] bool has(std::uint64_t feature) const { return (features_ & feature) != 0; }
  [[nodiscard]] Process& process() { return *process_; }
  [[nodiscard]] bool has_unread_event() const { return changing_ != 0; }

  /// False if `until` came first, or interrupt() was called.
  bool wait_readable(TimePoint until);
  void interrupt();
  Result<std::size_t> read(std::span<uffd_msg> messages, os::Wait wait);

  /// `from`: as much of it as can be read.
  Resolved copy(Address to, std::span<const std::byte> from, ByteCount length, std::uint64_t mode);
  Resolved zeropage(Address start, ByteCount length, std::uint64_t mode);
  Resolved continue_run(Address start, ByteCount length, std::uint64_t mode);
  Resolved poison(Address start, ByteCount length, std::uint64_t mode);
  Resolved move(Address to, Address from, ByteCount length, std::uint64_t mode);
  int writeprotect(Address start, ByteCount length, std::uint64_t mode);
  int wake(Address start, ByteCount length);
  int register_range(Address start, ByteCount length, std::uint64_t mode, std::uint64_t& ioctls);
  int unregister_range(Address start, ByteCount length);
  /// PAGEMAP_SCAN for written pages, with PM_SCAN_CHECK_WPASYNC: appends their addresses.
  int scan_written(Address start, ByteCount length, bool protects_again, std::vector<std::uint64_t>& pages);

 private:
  friend class Process;
  struct Fault {
    std::uint64_t address;
    UffdMode reason;
    Access access;
    std::uint32_t thread;
    bool woken = false;
    WaitList waiting;

    [[nodiscard]] std::uint64_t page() const { return address / kPage * kPage; }
  };
  struct Event {
    uffd_msg message{};
    bool read = false;
    std::shared_ptr<Context> child;
    WaitList waiting;
  };

  /// One page: 0 or an errno.
  using PageStep = std::function<int(const Vma&, std::uint64_t page)>;
  Resolved resolve(const char* name, Address start, ByteCount length, std::uint64_t mode, const PageStep& step);
  Resolved finish(const char* name, Address start, ByteCount length, std::uint64_t mode, os::Progress progress);
  void run_steps(const Vma& vma, Address start, ByteCount length, const PageStep& step, os::Progress& progress);
  int can_move(const Vma* to, const Vma* from, Address to_end, Address from_end) const;
  int can_register(Address start, ByteCount length, UffdModes modes) const;
  void protect(const Vma& vma, std::uint64_t page, bool protect);
  void wake_range(Address start, ByteCount length);
  /// With the process's mappings locked: what came between is not missed, for the entry is looked at again.
  std::shared_ptr<Fault> queue_fault(std::uint64_t address, UffdMode reason, Access access);
  void sleep_in(const std::shared_ptr<Fault>& fault, bool must_wait);
  [[nodiscard]] bool must_wait(const Fault& fault) const;
  void drop_fault(const Fault& fault);
  void raise() { ++changing_; }
  void send(Event event);

  Process* process_;
  std::uint64_t features_;
  int fd_;
  unsigned changing_ = 0;
  bool interrupted_ = false;
  std::deque<std::shared_ptr<Fault>> pending_;
  std::vector<std::shared_ptr<Fault>> delivered_;
  std::deque<std::shared_ptr<Event>> events_;
  WaitList readers_;
};

/// What fails at random, once in so many calls; 0: never.
struct KernelFaults {
  std::uint64_t no_memory_one_in = 0;      ///< a step of a resolution: ENOMEM
  std::uint64_t write_fails_one_in = 0;    ///< a write to a memory file: ENOSPC
  std::uint64_t interrupted_one_in = 0;    ///< a sleep in a fault ends early, as by a signal
  std::uint64_t no_descriptor_one_in = 0;  ///< reading a FORK event: EMFILE
};

class Kernel {
 public:
  explicit Kernel(const KernelFaults& faults);
  ~Kernel();
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;

  /// The kernel that system calls of the code under test reach. There is one at a time.
  static Kernel& running();

  std::shared_ptr<Process> start_process();
  /// One that maps something in the range; null if there is none.
  [[nodiscard]] std::shared_ptr<Process> process_at(std::uint64_t start, std::uint64_t length) const;
  std::shared_ptr<Context> open_userfault(Process& process, std::uint64_t features);
  std::unique_ptr<os::Userfault> wrap(std::shared_ptr<Context> context);
  [[nodiscard]] std::shared_ptr<Context> context(int fd) const;

  std::shared_ptr<File> create_file(const std::string& name, ByteCount size);
  [[nodiscard]] std::shared_ptr<File> file(int fd) const;
  int write(File& file, std::uint64_t offset, std::span<const std::byte> bytes);
  void read(const File& file, std::uint64_t offset, std::span<std::byte> bytes) const;
  void punch(File& file, std::uint64_t first_page, std::uint64_t end_page);
  /// Somebody touches the file through a mapping that is not registered: a zero page, if the cache has none.
  void pollute(File& file, std::uint64_t page);

  /// Hears of a page whose publication the kernel refused: its SIGBUS is right.
  using RefusedHook = std::function<void(const File&, std::uint64_t page)>;
  void on_refused(RefusedHook hook) { refused_ = std::move(hook); }

  [[nodiscard]] const KernelFaults& faults() const { return faults_; }

 private:
  friend class Process;
  KernelFaults faults_;
  RefusedHook refused_;
  std::vector<std::shared_ptr<Process>> processes_;
  std::vector<std::shared_ptr<Context>> contexts_;
  std::vector<std::shared_ptr<File>> files_;
};

}  // namespace uffda::sim
