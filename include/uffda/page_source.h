// Page sources: where the contents of pages come from.
//
// A source has bytes; it never sees a page, a folio, a mapping, a lock of the core or a userfaultfd. The core asks for
// a byte range by handing over a FetchTicket, and the source answers it exactly once, from any thread, at any time, in
// any order:
//
//   1. the core claims the range, so that a source never sees the same bytes asked for twice at once;
//   2. `fetch(ticket)` starts the read and returns without waiting for it;
//   3. the source fills `ticket.buffer()` and calls `complete`, or calls `fail`.
//
// A ticket that is dropped unanswered fails by itself, so that a lost ticket is an error and never a hang. What was
// written to a mapping goes to a writable source in the same way, by a WriteTicket. A source that has bytes to offer
// unasked (a migration that pushes) supplies them through the PageSink that it gets when it is attached to an object.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "uffda/deadline.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda {

/// Who handed out a ticket and hears of its answer.
class FetchOwner {
 public:
  /// The ticket that was made with `request` is answered: bytes that were written to the start of its buffer, or why
  /// not. Threads: any; called exactly once per ticket, with no lock of the source held.
  virtual void fetched(void* request, Result<ByteCount> result) noexcept = 0;

 protected:
  ~FetchOwner() = default;
};

/// The right and the duty to answer one fetch. Move-only; moving is cheap and never allocates.
class FetchTicket {
 public:
  /// `buffer` is resident memory of `range.length` bytes, owned by `owner` until the ticket is answered.
  FetchTicket(FetchOwner& owner, void* request, ByteRange range, std::span<std::byte> buffer,
              Deadline deadline) noexcept
      : owner_(&owner), request_(request), range_(range), buffer_(buffer), deadline_(deadline) {}
  FetchTicket(FetchTicket&& other) noexcept;
  FetchTicket& operator=(FetchTicket&& other) noexcept;
  FetchTicket(const FetchTicket&) = delete;
  FetchTicket& operator=(const FetchTicket&) = delete;
  ~FetchTicket();  ///< fails the fetch if nobody answered it

  [[nodiscard]] ByteRange range() const noexcept { return range_; }
  [[nodiscard]] std::span<std::byte> buffer() const noexcept { return buffer_; }
  /// After this the core has given the range up; an answer is still due, but nobody uses its bytes.
  [[nodiscard]] Deadline deadline() const noexcept { return deadline_; }

  /// The first `done` bytes of the buffer are the source's. Fewer than asked for is an error (a short read), which the
  /// owner reports.
  void complete(ByteCount done) && noexcept;
  void fail(Error error) && noexcept;

 private:
  void answer(Result<ByteCount> result) noexcept;

  FetchOwner* owner_;
  void* request_;
  ByteRange range_;
  std::span<std::byte> buffer_;
  Deadline deadline_;
};

/// Who handed out a WriteTicket and hears of its answer.
class WriteOwner {
 public:
  /// The ticket that was made with `request` is answered. Threads: any; called exactly once per ticket, with no lock of
  /// the source held.
  virtual void written_back(void* request, Result<void> result) noexcept = 0;

 protected:
  ~WriteOwner() = default;
};

/// The right and the duty to store one range of bytes. Move-only; moving is cheap and never allocates.
class WriteTicket {
 public:
  /// `bytes` are resident memory, owned by `owner` and unchanged until the ticket is answered.
  WriteTicket(WriteOwner& owner, void* request, ByteOffset offset, std::span<const std::byte> bytes,
              Deadline deadline) noexcept
      : owner_(&owner), request_(request), offset_(offset), bytes_(bytes), deadline_(deadline) {}
  WriteTicket(WriteTicket&& other) noexcept;
  WriteTicket& operator=(WriteTicket&& other) noexcept;
  WriteTicket(const WriteTicket&) = delete;
  WriteTicket& operator=(const WriteTicket&) = delete;
  ~WriteTicket();  ///< fails the write if nobody answered it

  [[nodiscard]] ByteRange range() const noexcept { return {offset_, {bytes_.size()}}; }
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }
  /// After this the core reports the write as failed. It does not write the range again before the answer.
  [[nodiscard]] Deadline deadline() const noexcept { return deadline_; }

  /// All of the bytes are the source's: a fetch that starts from now on gets them. They need not outlive a loss of
  /// power: flush() is for that.
  void complete() && noexcept { answer({}); }
  /// None, some or all of the bytes may be the source's. They are written again.
  void fail(Error error) && noexcept { answer(std::unexpected(std::move(error))); }

 private:
  void answer(Result<void> result) noexcept;

  WriteOwner* owner_;
  void* request_;
  ByteOffset offset_;
  std::span<const std::byte> bytes_;
  Deadline deadline_;
};

/// What a source is. Asked once, when it is opened, and never again.
struct SourceProperties {
  ByteCount size;  ///< bytes; fixed for the life of the source
  ByteCount block_size{
      1};  ///< fetches start at a multiple of it and end at one, or at the end of the source; a power of two
  ByteCount preferred_read = 64_KiB;  ///< a good size for one read when more than one folio is wanted
  /// What the source has to read, or unpack, to answer one byte of it: the frame of a compressed snapshot. A fault
  /// fetches the whole unit, as far as it is absent, so that no unit is read twice. A power of two; 1: any range costs
  /// what it has.
  ByteCount unit{1};
  unsigned parallel = 64;  ///< tickets that may be in flight at once
  bool writable = false;   ///< write_back works
  bool growable = false;   ///< resize works: `size` is the most it can have, and what is behind its end reads as zeroes
  ByteCount length{};      ///< of a growable source: its end, when it was opened
  bool reserves = false;   ///< reserve has to be asked before bytes are written
  bool immediate = false;  ///< fetch_now works: it takes no lock, allocates nothing and waits for local storage at most
  /// Changes whenever the bytes under this name may have changed (an ETag, a checksum, times of a file): what a cache
  /// that outlives the source goes by. Empty: the source cannot tell.
  std::string version{};  // NOLINT(readability-redundant-member-init): without it a designated initialiser warns
};

/// A range of a source and what is known of it.
struct Extent {
  enum class Kind : std::uint8_t {
    data,
    zero,  ///< reads as zeroes, and costs next to nothing to read
  };
  ByteRange range;
  Kind kind = Kind::data;
  bool operator==(const Extent&) const = default;
};

struct SourceCounters {
  std::atomic<std::uint64_t> fetches{0};
  std::atomic<std::uint64_t> bytes{0};
  std::atomic<std::uint64_t> writes{0};
  std::atomic<std::uint64_t> bytes_written{0};
};

/// The way for a source to offer what nobody asked for. Valid as long as somebody holds it; after the object is gone
/// calls do nothing.
class PageSink {
 public:
  virtual ~PageSink() = default;
  /// Bytes of the source from `offset` on; whole folios of them become present (parts of folios at either end are
  /// ignored, except the last folio of the object). What is present already stays as it is. Errors: out_of_range;
  /// unsupported (the memory type has no page cache); again (the budget had no room for all of it in 50 ms).
  virtual Result<void> supply(ByteOffset offset, std::span<const std::byte> bytes) = 0;
  /// The bytes of the range cannot be had: the absent folios in it are poisoned.
  virtual Result<void> fail(ByteRange range, const Error& error) = 0;
  /// The range changed at the source: cached and poisoned folios in it are dropped and fetched anew when touched.
  virtual Result<void> invalidate(ByteRange range) = 0;
};

/// Base of all sources. Public methods validate and count; the private virtuals only do the work.
class PageSource {
 public:
  PageSource() = default;
  PageSource(const PageSource&) = delete;
  PageSource& operator=(const PageSource&) = delete;
  /// Every ticket has been answered when the destructor of the most derived class returns. Not to be called from within
  /// an answer (FetchOwner::fetched): a source may wait here for the thread that answers.
  virtual ~PageSource() = default;

  /// Threads: any, after the source was opened.
  [[nodiscard]] const SourceProperties& properties() const { return properties_; }
  [[nodiscard]] const SourceCounters& counters() const { return counters_; }
  /// A short name for messages and reports: the URI, without secrets.
  [[nodiscard]] const std::string& name() const { return name_; }

  /// Starts a fetch. Requires: range within the source, aligned as properties() says, no more than
  /// properties().parallel in flight. A ticket that breaks this is failed (out_of_range, busy). Threads: any,
  /// concurrently. Never waits for the bytes; what is at hand may be answered before fetch returns, in the calling
  /// thread.
  void fetch(FetchTicket ticket) noexcept;

  /// Reads in the calling thread. Requires properties().immediate. Errors: io, out_of_range, unsupported.
  Result<void> fetch_now(ByteOffset offset, std::span<std::byte> buffer) noexcept;

  /// Starts to store bytes. Requires properties().writable; range within the source, aligned as properties() says, no
  /// more than properties().parallel in flight, and none that overlaps another write or a fetch. A ticket that breaks
  /// this is failed (out_of_range, unsupported). Threads: any, concurrently. Never waits for the bytes to be stored.
  void write_back(WriteTicket ticket) noexcept;

  /// What was completed before outlives a loss of power. May wait on the source: call with no lock held. Threads: any.
  /// Errors: io, timed_out, no_memory (no space); some of what was completed since the last flush may be lost then.
  Result<void> flush();

  /// Makes sure that there is space to write `range`, where properties().reserves. May wait on the source: call with no
  /// lock held. Threads: any. Errors: no_memory (no space), io.
  Result<void> reserve(ByteRange range);

  /// Moves the end of a growable source, to at most properties().size. What is cut off is gone; what is added
  /// is zeroes. Writes under way to what is cut off are dropped. May wait on the source: call with no lock held.
  /// Threads: one at a time. Errors: out_of_range, no_memory (no space), io.
  Result<void> resize(ByteCount length);

  /// What is data and what reads as zeroes in `range`, in order, without gaps, from its start on; at least the first
  /// extent, and as many more as cost little to find. Requires: range within the source, not empty. May wait on the
  /// source: call with no lock held. Threads: any. Errors: io, timed_out, out_of_range. What cannot tell says data.
  Result<std::vector<Extent>> extents(ByteRange range);

  /// What an earlier run touched of it, if that came with the bytes: a file as in docs/formats/working-set.md. Empty:
  /// nothing did. May wait on the source: call with no lock held. Threads: any. Errors: io, timed_out.
  Result<std::vector<std::byte>> working_set() { return do_working_set(); }

  /// Told once, before the first fetch: most buffers will lie in this memory (a source may register it for I/O).
  void set_arena(std::span<std::byte> arena) { do_set_arena(arena); }
  /// Told once, before the first fetch.
  void attach(std::shared_ptr<PageSink> sink) { do_attach(std::move(sink)); }

 protected:
  /// Called by the factory of the derived class when the source is open.
  void opened(std::string name, SourceProperties properties) {
    name_ = std::move(name);
    properties_ = std::move(properties);
  }

 private:
  virtual void do_fetch(FetchTicket ticket) noexcept = 0;
  virtual Result<void> do_fetch_now(ByteOffset offset, std::span<std::byte> buffer) noexcept;
  virtual void do_write_back(WriteTicket ticket) noexcept;
  virtual Result<void> do_flush();
  virtual Result<void> do_reserve(ByteRange range);
  virtual Result<void> do_resize(ByteCount length);
  virtual Result<std::vector<Extent>> do_extents(ByteRange range);
  virtual Result<std::vector<std::byte>> do_working_set();
  virtual void do_set_arena(std::span<std::byte>) {}
  virtual void do_attach(std::shared_ptr<PageSink>) {}

  [[nodiscard]] bool contains(ByteRange range) const noexcept;
  [[nodiscard]] bool accepts(ByteRange range) const noexcept;

  std::string name_;
  SourceProperties properties_;
  SourceCounters counters_;
};

/// What a source is opened for.
enum class OpenFor : std::uint8_t {
  reading,
  writing,
  growing,  ///< writing, also behind the end
};

/// Opens the source that a URI names: `file:disk.img`, `zero:1G`, `delay+file:disk.img?delay=2ms`.
/// Errors: invalid_argument (the message says what is wrong and what would be right), not_found (unknown scheme or no
/// such file), io; for writing also permission_denied, unsupported (this source, or a layer, can only be read, or
/// cannot grow).
Result<std::unique_ptr<PageSource>> open_source(std::string_view uri, OpenFor what_for = OpenFor::reading);

}  // namespace uffda
