// Fault loops: the threads that read a userfaultfd.
//
// Where a handler runs decides its latency: on the CPU of the faulting thread a fault costs a switch, on another one an
// inter-processor wake-up that costs five times as much. So there is one reader per CPU, pinned, and whichever is on
// the right CPU wins (docs/performance.md). While one of them wins all the time, or reads a flood of events, the others
// stand by (solo_reader.h, solo_poller.h).
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "mm/address_space.h"
#include "mm/solo_poller.h"
#include "mm/solo_reader.h"
#include "os/fd.h"
#include "uffda/handlers.h"

namespace uffda {

/// The readers of one address space. They stop when it exits or when this goes.
class FaultLoop {
 public:
  /// For an address space whose userfaultfd does not block and has events. Errors: no_memory (threads, descriptors).
  static Result<std::unique_ptr<FaultLoop>> start_polling(std::shared_ptr<AddressSpace> space);
  /// For a local one without events, whose userfaultfd blocks. Policy: per_cpu, one or spinning.
  static Result<std::unique_ptr<FaultLoop>> start_blocking(std::shared_ptr<AddressSpace> space, HandlerPolicy policy);
  ~FaultLoop();
  FaultLoop(const FaultLoop&) = delete;
  FaultLoop& operator=(const FaultLoop&) = delete;

  /// True once the address space has exited and its readers have stopped.
  [[nodiscard]] bool finished() const { return running_.load(std::memory_order_acquire) == 0; }

 private:
  explicit FaultLoop(std::shared_ptr<AddressSpace> space) : space_(std::move(space)) {}

  static constexpr int kAnyCpu = -1;

  struct Reader {
    unsigned number;
    int cpu;  // or kAnyCpu
  };
  /// What the doorbells among some messages said.
  struct Rung {
    bool stop = false;
    bool any = false;
    std::optional<std::uint64_t> stand_by;  // a ticket
  };

  enum class Woken : std::uint8_t { by_messages, in_vain, gone };

  Result<void> start(const std::vector<int>& cpus, const std::function<void(Reader)>& body);
  Woken wait_for_messages(Reader reader);
  void note_served(Reader reader, std::span<const uffd_msg> messages);
  void poll_loop(Reader reader);
  void blocking_loop(Reader reader, bool spin);
  Rung handle_messages(std::span<uffd_msg> messages);
  void answer_bell(const uffd_msg& message, Rung& rung);
  Result<void> make_doorbells(std::size_t count);
  void ring(std::size_t bell);
  void ring_doorbells();
  void call_away(Reader reader, unsigned others);

  std::shared_ptr<AddressSpace> space_;
  os::UniqueFd stop_event_;     // wakes the polling loops
  os::MappedMemory doorbells_;  // a page for each blocking loop to stop by, and one each to call the others away by
  SoloReader solo_;             // of the blocking loops
  SoloPoller solo_poller_;      // of the polling loops
  std::atomic<int> running_{0};
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> threads_;
};

}  // namespace uffda
