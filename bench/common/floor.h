// The floor: a bare loop of the same system calls. A memfd, a mapping of it under a userfaultfd of its own, and
// handlers that read one message and resolve it by UFFDIO_CONTINUE, with nothing else on the way: no states, no lock,
// no counters.
#pragma once

#include <linux/userfaultfd.h>

#include <atomic>
#include <csignal>
#include <cstddef>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace bench {

enum class FloorHandler {
  same_cpu,   ///< one reader, pinned where the toucher is
  other_cpu,  ///< one reader, pinned elsewhere
  every_cpu,  ///< a pinned reader on each CPU
  spinning,   ///< one reader on another CPU that never sleeps while it is entered
  in_thread,  ///< no reader: UFFD_FEATURE_SIGBUS, resolved in the signal handler
};

class Floor {
 public:
  struct Setup {
    std::size_t bytes = 0;
    FloorHandler handler = FloorHandler::same_cpu;
    int toucher_cpu = 0;
    int source_fd =
        -1;  ///< a file whose pages are read into the memfd when they are missing; -1: everything is cached by fill()
    int memfd = -1;  ///< another one's cache, so that both have the same pages of memory; -1: one of its own
  };
  /// Why this process gets no userfaultfd; none if it gets one.
  static std::optional<std::string> cannot();
  explicit Floor(const Setup& setup);
  ~Floor();
  Floor(const Floor&) = delete;
  Floor& operator=(const Floor&) = delete;

  [[nodiscard]] const std::byte* data() const { return data_; }
  void fill();         ///< caches every page
  void unmap_pages();  ///< the next touch of any page faults; the cache stays
  void empty();        ///< drops the cache too
  /// Pages that one fault maps.
  void set_run(std::size_t pages) { run_ = pages * kPageSize; }
  /// Around a round of touches: spinning starts and stops, the process's SIGBUS is this floor's.
  void enter();
  void leave();

 private:
  static constexpr std::size_t kPageSize = 4096;
  static constexpr std::size_t kMaxHandlers = 64;

  void start_handler(int cpu);
  void handler_loop();
  bool next_message(uffd_msg& message);
  void resolve(std::uint64_t address, bool missing);
  static void on_sigbus(int signal, siginfo_t* info, void* context);

  Setup setup_;
  int uffd_ = -1;
  int memfd_ = -1;
  std::byte* data_ = nullptr;
  std::size_t mapped_ = 0;
  std::size_t run_ = kPageSize;
  std::atomic<bool> spin_{false};
  struct sigaction before_{};
  std::vector<std::thread> handlers_;
};

}  // namespace bench
