// Sends the RAM of a machine to a QEMU that runs already: what it asks for at once, everything else when it is quiet.
//
//   QEMU: PageRequest --> demand --> the object's folio, cached?  --> a record of the stream
//                                    absent: MemoryType::fault, whose news ring a bell, then again
//   nothing asked for: the plan (push_plan.h), in small batches; so few bytes stand before an answer
//
// A page is sent once, for QEMU takes it as an error if one comes twice. One thread; only the bell is rung by others. A
// page that cannot be had ends the session: QEMU then pauses the machine with all it has, and another session goes on.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <vector>

#include "base/thread.h"
#include "mm/fault_clusters.h"
#include "mm/request_table.h"
#include "os/fd.h"
#include "qemu/cancel.h"
#include "qemu/machine.h"
#include "qemu/push_plan.h"
#include "qemu/replies.h"
#include "qemu/restore.h"
#include "uffda/result.h"

namespace uffda::qemu {

/// Wakes the session when folios have come. Outlives it, for a source may be late.
class NewsBell final : public FolioWaiter {
 public:
  static Result<std::shared_ptr<NewsBell>> create();
  [[nodiscard]] int fd() const { return fd_.get(); }
  void ring() const;
  void silence() const;
  void folios_news(const MemoryObject& object, std::uint64_t base, FolioRange folios, FolioNews news,
                   std::span<const std::byte> bytes) override;

 private:
  explicit NewsBell(os::UniqueFd fd) : fd_(std::move(fd)) {}
  os::UniqueFd fd_;
};

class RamPush {
 public:
  /// `stream` leads to QEMU; `recorded` is what to send first of all. `machine` outlives it. Errors:
  /// no_memory (descriptors).
  static Result<std::unique_ptr<RamPush>> create(const Machine& machine, os::UniqueFd stream,
                                                 std::vector<PushRun> recorded, Cancel cancel);
  ~RamPush();
  RamPush(const RamPush&) = delete;
  RamPush& operator=(const RamPush&) = delete;

  /// Starts the machine. Errors: gone (QEMU closed the stream), timed_out.
  Result<void> start();
  /// Finds out what an earlier session has sent, and goes on. Errors: as start; protocol, cancelled.
  Result<void> resume();
  /// Until QEMU has all of it. Errors: as start; io and timed_out (a page that cannot be had), cancelled.
  Result<void> run();

  [[nodiscard]] const RestoreCounts& counts() const { return counts_; }

 private:
  enum class Look : std::uint8_t { sent, waits, failed };
  struct Demand {
    UnitIndex unit = 0;
    std::uint64_t around = 1;  // folios that go along, this one included
  };

  RamPush(const Machine& machine, os::UniqueFd stream, std::shared_ptr<NewsBell> bell, std::vector<PushRun> recorded,
          Cancel cancel);
  void plan_everything();
  void plan_block(std::size_t block);
  Result<void> handle(const Reply& reply);
  Result<void> note_request(const PageRequest& request);
  Result<void> note_received(const ReceivedPages& received);
  [[nodiscard]] Result<std::size_t> find_block(const std::string& name) const;
  Result<void> serve_demand();
  void push_some();
  [[nodiscard]] bool may_push() const;
  bool next_planned();
  void skip_sent();
  void push_zeroes();
  Look send(UnitIndex unit, bool asked);
  void send_around(UnitIndex unit);
  [[nodiscard]] FolioRange around(const MemoryObject& object, FolioIndex index) const;
  Look read_unit(const ServedBlock& served, ByteOffset offset, std::span<std::byte> bytes, bool asked);
  Look read_folio(MemoryObject& object, FolioIndex index, std::span<std::byte> bytes, bool asked);
  void note_sent(UnitIndex unit);
  Result<void> exchange();
  Result<void> receive();
  Result<void> flush();
  [[nodiscard]] int patience_ms() const;
  enum class Interrupted : bool { at_once, afterwards };
  /// Sends and receives until `done`. Errors: timed_out, cancelled, and those of the connection.
  template <typename Done>
  Result<void> exchange_until(const Done& done, const char* what, Interrupted interrupted);

  const Machine& machine_;
  const Units units_;
  os::UniqueFd stream_;
  const std::shared_ptr<NewsBell> bell_;
  const Cancel cancel_;
  RestoreCounts counts_;

  ReplyParser replies_;
  std::vector<std::byte> input_;
  std::vector<std::byte> output_;
  std::size_t output_begin_ = 0;
  TimePoint output_moved_;
  std::vector<std::byte> page_;  // one unit

  std::vector<bool> sent_;
  UnitIndex left_;
  std::deque<Demand> demand_;
  FaultClusters clusters_;    // of what was asked for
  std::uint64_t around_ = 1;  // folios, of the demand at hand
  const TimePoint begun_ = Clock::now();
  TimePoint last_demand_ = begun_;
  bool push_waits_ = false;     // for news of the folio at hand
  bool plan_is_short_ = false;  // the planner rings, too
  bool again_soon_ = false;     // for room, which nobody tells of
  std::size_t bitmaps_ = 0;
  bool resumed_ = false;
  bool closed_ = false;

  std::vector<PushRun> recorded_;  // and then:
  Mutex plan_mutex_;
  std::vector<PushRun> planned_ UFFDA_GUARDED_BY(plan_mutex_);  // everything, as it becomes known
  std::size_t recorded_at_ = 0;
  std::size_t planned_at_ = 0;
  PushRun run_;  // at hand
  bool from_recording_ = false;
  std::atomic<bool> planning_ends_{false};
  Thread planner_;
};

}  // namespace uffda::qemu
