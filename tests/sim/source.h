// A page source that does everything a source may do: answer late, out of order, in part, wrongly, never, or unasked.
// What it should have said, and where it failed, is kept apart from it: Truth outlives the source.
#pragma once

#include <list>
#include <memory>
#include <set>
#include <vector>

#include "sim/kernel.h"
#include "uffda/page_source.h"

namespace uffda::sim {

/// What the pages of one object are, and what may be read of them.
class Truth {
 public:
  Truth(std::size_t object, ByteCount size);

  [[nodiscard]] std::size_t object() const { return object_; }
  [[nodiscard]] ByteCount size() const { return size_; }
  [[nodiscard]] std::uint64_t pages() const { return pages_.size(); }

  /// Bytes of the object's page as it is now at the source; zeroes behind the end.
  [[nodiscard]] PageBytes bytes_now(std::uint64_t page) const {
    return bytes(page, written_back_ ? pages_[page].taken : pages_[page].version);
  }
  void set_written_back() { written_back_ = true; }
  [[nodiscard]] bool written_back() const { return written_back_; }
  /// The page changes at the source.
  void change(std::uint64_t page) { ++pages_[page].version; }
  /// Somebody stores to the page in memory: what it holds from now on, for everybody. The source gets it later.
  PageBytes store(std::uint64_t page);
  /// The source takes bytes, which have to be whole pages as they were at some moment, and never older ones than it
  /// has.
  void take(std::uint64_t page, std::span<const std::byte> bytes);
  /// The source makes what it has safe from a loss of power.
  void flush();
  [[nodiscard]] std::uint64_t flushed(std::uint64_t page) const { return pages_[page].flushed; }
  /// The source has all that was stored.
  [[nodiscard]] bool has_all() const;
  /// Nobody who starts to read from now on may see what was before the last change.
  void settle(std::uint64_t page, std::uint64_t version);
  [[nodiscard]] std::uint64_t version(std::uint64_t page) const { return pages_[page].version; }
  [[nodiscard]] std::uint64_t settled(std::uint64_t page) const { return pages_[page].settled; }
  /// Whether the first `length` bytes of `seen` from `skip` on are some version of the page from `oldest` to now.
  [[nodiscard]] bool is_version_since(std::uint64_t page, std::uint64_t oldest, std::span<const std::byte> seen,
                                      std::size_t skip = 0) const;

  /// The source failed here for good, or was too late: SIGBUS is right.
  void note_failure(std::uint64_t page) { pages_[page].failed = true; }
  /// So many answers are overdue that the core may give the whole object up.
  void note_silence() { silent_ = true; }
  [[nodiscard]] bool failed(std::uint64_t page) const { return silent_ || pages_[page].failed; }

 private:
  struct Page {
    std::uint64_t version = 0;
    std::uint64_t settled = 0;
    bool failed = false;
    std::uint64_t taken = 0;    ///< the version that the source has, of what is written back
    std::uint64_t flushed = 0;  ///< and after a loss of power
  };
  [[nodiscard]] PageBytes bytes(std::uint64_t page, std::uint64_t version) const;

  std::size_t object_;
  ByteCount size_;
  std::vector<Page> pages_;
  bool silent_ = false;
  bool written_back_ = false;
};

/// How a source behaves: once in so many answers; 0: never.
struct SourceHabits {
  Duration delay{};                  ///< at most, of an answer
  std::uint64_t at_once_one_in = 0;  ///< answers before fetch() returns
  std::uint64_t error_one_in = 0;
  std::uint64_t short_one_in = 0;
  std::uint64_t dropped_one_in = 0;
  std::uint64_t late_one_in = 0;      ///< after the deadline
  std::uint64_t never_one_in = 0;     ///< not before the source ends
  std::uint64_t bad_page_one_in = 0;  ///< a page that fails always
  bool immediate = false;
  unsigned pushes = 0;  ///< pages offered, failures announced, changes announced: so many in all
  bool pushes_change = false;
  bool writable = false;
  bool reserves = false;
  std::uint64_t no_space_one_in = 0;  ///< of a request for space
  std::uint64_t write_error_one_in = 0;
  std::uint64_t write_late_one_in = 0;
  std::uint64_t flush_error_one_in = 0;
};

class SimulatedSource final : public PageSource {
 public:
  SimulatedSource(std::shared_ptr<Truth> truth, const SourceHabits& habits);
  ~SimulatedSource() override;

  [[nodiscard]] std::size_t answers_due() const { return asked_.size(); }
  [[nodiscard]] unsigned pushes() const { return pushes_; }
  [[nodiscard]] std::uint64_t writes() const { return writes_; }
  /// Its server is dead: of the writes that are under way the kernel still does none, some or all.
  void end_writes_of_the_dead();

 private:
  struct Asked {
    ByteRange range;
    TimePoint deadline;
    std::span<const std::byte> bytes;  // of a write
  };
  using AskedAt = std::list<Asked>::iterator;

  void do_fetch(FetchTicket ticket) noexcept override;
  Result<void> do_fetch_now(ByteOffset offset, std::span<std::byte> buffer) noexcept override;
  void do_write_back(WriteTicket ticket) noexcept override;
  Result<void> do_flush() override;
  Result<void> do_reserve(ByteRange range) override;
  void do_attach(std::shared_ptr<PageSink> sink) override;

  // What it does unasked, to a few pages from `first` on.
  void push_some();
  void push(std::uint64_t first, std::uint64_t count);
  void push_failure(std::uint64_t first, std::uint64_t count);
  void push_change(std::uint64_t first, std::uint64_t count);

  AskedAt begin(ByteRange range, TimePoint deadline);
  void answer(FetchTicket ticket, AskedAt asked);
  void answer_write(WriteTicket ticket, AskedAt asked);
  void take(const Asked& asked, std::uint64_t page);
  void expect_apart(ByteRange range, const std::list<Asked>& others) const;
  void fill(ByteRange range, std::span<std::byte> buffer) const;
  [[nodiscard]] bool fails(ByteRange range) const;
  void note_failure(ByteRange range, const char* why) const;
  void note_overdue() const;

  std::shared_ptr<Truth> truth_;
  SourceHabits habits_;
  std::set<std::uint64_t> bad_pages_;
  std::list<Asked> asked_;
  std::list<Asked> writing_;
  std::uint64_t writes_ = 0;
  std::shared_ptr<PageSink> sink_;
  Fiber* pusher_ = nullptr;
  unsigned pushes_ = 0;
  std::size_t late_ = 0;  // answers that came or come after their deadline
  bool closing_ = false;
  WaitList closes_;
  WaitList answered_;
};

}  // namespace uffda::sim
