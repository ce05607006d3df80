// The contract of a page source.
#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <random>
#include <thread>

#include "modules/check_parts.h"
#include "modules/loader.h"
#include "modules/module_source.h"

namespace uffda::modules {
namespace {

constexpr std::uint64_t kMostBytes = std::uint64_t{8} << 20U;  // of a large source, from its start and at its end
constexpr unsigned kRandomReads = 64;
constexpr unsigned kThreads = 4;
constexpr unsigned kOpens = 20;

using Bytes = std::vector<std::byte>;

/// Hears one answer.
class FirstAnswer final : public FetchOwner {
 public:
  void fetched(void*, Result<ByteCount> result) noexcept override {
    const std::scoped_lock lock(mutex_);
    result_ = std::move(result);
    changed_.notify_all();
  }
  Result<ByteCount> wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return result_.has_value(); });
    return *std::move(result_);
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Result<ByteCount>> result_;
};

class SourceCheck {
 public:
  SourceCheck(std::shared_ptr<SourceKind> kind, std::string label, Arguments arguments, Duration deadline)
      : kind_(std::move(kind)), label_(std::move(label)), arguments_(std::move(arguments)), deadline_(deadline) {}

  Result<void> open() {
    source_ = UFFDA_TRY(open_another());
    block_ = std::max(source_->properties().block_size.value, kPageSize.value);
    return {};
  }
  Result<void> reads_all();
  Result<void> fills_its_buffers();
  Result<void> any_order();
  Result<void> the_end();
  Result<void> several_at_once();
  Result<void> opened_twice();
  Result<void> leaves_nothing();
  void close() { source_.reset(); }

 private:
  Result<std::unique_ptr<PageSource>> open_another() {
    return open_module_source(kind_, label_, "mod:" + kind_->about().name, arguments_, deadline_);
  }
  Result<Bytes> fetch(PageSource& source, std::uint64_t offset, std::uint64_t length) const {
    Bytes bytes(length);
    FirstAnswer reader;
    source.fetch(
        FetchTicket(reader, nullptr, {.start = {offset}, .length = {length}}, bytes, Deadline::after(deadline_)));
    UFFDA_TRY(reader.wait());
    return bytes;
  }
  Result<void> same(const Bytes& bytes, std::uint64_t offset) const {
    if (std::equal(bytes.begin(), bytes.end(), bytes_.begin() + static_cast<std::ptrdiff_t>(offset))) return {};
    return fail(Errc::protocol, fmt::format("{} bytes at {} are others than the first time", bytes.size(), offset));
  }
  Result<void> read_at_random(PageSource& source, unsigned seed) const;

  std::shared_ptr<SourceKind> kind_;
  std::string label_;
  Arguments arguments_;
  Duration deadline_;
  std::unique_ptr<PageSource> source_;
  std::uint64_t block_ = 0;
  Bytes bytes_;  // from the start
};

Result<void> SourceCheck::reads_all() {
  const std::uint64_t size = std::min(source_->properties().size.value, kMostBytes);
  for (std::uint64_t at = 0; at < size; at += kMaxFolio) {
    const Bytes part = UFFDA_TRY(fetch(*source_, at, std::min(kMaxFolio, size - at)));
    bytes_.insert(bytes_.end(), part.begin(), part.end());
  }
  return {};
}

Result<void> SourceCheck::fills_its_buffers() {
  // The same bytes into buffers that held different ones: what is not written shows.
  Calls calls(label_, 1, Calls::Lost::all);
  const auto ops = UFFDA_TRY(make_in_time<SourceOps>(
      calls, "open", deadline_, [kind = kind_, arguments = arguments_] { return kind->open(arguments); },
      [](SourceOps& late) { [[maybe_unused]] const auto closed = late.close(); }));
  const std::size_t length = std::min<std::size_t>(bytes_.size(), kMaxFolio);
  Result<void> result;
  for (const std::byte fill : {std::byte{0x55}, std::byte{0xAA}}) {
    BouncePool pool;
    const std::shared_ptr<Bounce> buffer = UFFDA_TRY(pool.take(length));
    std::ranges::fill(buffer->bytes(), fill);
    const bool asynchronous = kind_->about().asynchronous;
    std::mutex mutex;
    std::condition_variable changed;
    std::optional<Calls::Value> answer;
    calls.start(
        "fetch", Deadline::after(deadline_),
        [=, deadline = Deadline::after(deadline_)](const Calls::Answer& reply) {
          if (asynchronous) return ops->fetch_async({0}, buffer, deadline, reply);
          (void)reply(ops->fetch({0}, buffer));
        },
        [&](const Calls::Value& value) {
          const std::scoped_lock lock(mutex);
          answer = value;
          changed.notify_all();
        });
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return answer.has_value(); });
    if (!*answer) {
      result = std::unexpected(answer->error());
    } else if (!std::equal(buffer->bytes().begin(), buffer->bytes().end(), bytes_.begin())) {
      result = fail(Errc::protocol, "a fetch left a part of its buffer as it was, and said that it filled it");
    }
    if (!result) break;
  }
  calls.close("close", deadline_, [ops] { return ops->close(); });
  return result;
}

Result<void> SourceCheck::read_at_random(PageSource& source, unsigned seed) const {
  std::mt19937_64 random(seed);
  const std::uint64_t blocks = bytes_.size() / block_;
  for (unsigned i = 0; blocks != 0 && i < kRandomReads; ++i) {
    const std::uint64_t first = random() % blocks;
    const std::uint64_t most = std::max<std::uint64_t>(std::min(blocks - first, kMaxFolio / block_), 1);
    const std::uint64_t count = 1 + random() % most;
    UFFDA_TRY_VOID(same(UFFDA_TRY(fetch(source, first * block_, count * block_)), first * block_));
  }
  return {};
}

Result<void> SourceCheck::any_order() { return read_at_random(*source_, 1); }

Result<void> SourceCheck::the_end() {
  const std::uint64_t size = source_->properties().size.value;
  const std::uint64_t last = align_down(size - 1, block_);
  const Bytes once = UFFDA_TRY(fetch(*source_, last, size - last));
  const Bytes again = UFFDA_TRY(fetch(*source_, last, size - last));
  if (once != again) return fail(Errc::protocol, "the last block is not the same twice");
  return size == bytes_.size() ? same(once, last) : Result<void>{};
}

Result<void> SourceCheck::several_at_once() {
  std::vector<Result<void>> results(kThreads);
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (unsigned t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] { results[t] = read_at_random(*source_, t + 2); });
  for (std::thread& thread : threads) thread.join();
  for (const Result<void>& result : results) UFFDA_TRY_VOID(result);
  return {};
}

Result<void> SourceCheck::opened_twice() {
  const std::unique_ptr<PageSource> other = UFFDA_TRY(open_another());
  if (other->properties().size != source_->properties().size)
    return fail(Errc::protocol, "it has another size when it is opened again");
  UFFDA_TRY_VOID(read_at_random(*other, 100));
  return read_at_random(*source_, 101);
}

Result<void> SourceCheck::leaves_nothing() {
  const std::size_t before = open_descriptors();
  for (unsigned i = 0; i < kOpens; ++i) UFFDA_TRY(open_another());
  const std::size_t after = open_descriptors();
  if (after <= before) return {};
  return fail(Errc::protocol,
              fmt::format("{} descriptors stay open after it was opened and closed {} times", after - before, kOpens));
}

}  // namespace

void check_source_contract(Suite& suite, const std::shared_ptr<SourceKind>& kind, const std::string& label,
                           const std::string& text, Duration deadline) {
  const std::string name = "source " + kind->about().name + ": ";
  std::optional<SourceCheck> check;
  const bool opened =
      suite.run(name + (text.empty() ? "opens without arguments" : "opens with " + text), [&]() -> Result<void> {
        check.emplace(kind, label, UFFDA_TRY(parse_arguments(text)), deadline);
        return check->open();
      });
  if (!opened) return;
  if (suite.run(name + "it can be read from one end to the other", [&] { return check->reads_all(); })) {
    suite.run(name + "a fetch fills its whole buffer", [&] { return check->fills_its_buffers(); });
    suite.run(name + "the same bytes come in any order and any size", [&] { return check->any_order(); });
    suite.run(name + "its last block, which need not be whole", [&] { return check->the_end(); });
    suite.run(name + "several fetches at once", [&] { return check->several_at_once(); });
    suite.run(name + "opened twice at once, it is the same source", [&] { return check->opened_twice(); });
  }
  suite.run(name + "closing it leaves nothing open", [&] { return check->leaves_nothing(); });
  suite.run(name + "it closes in time", [&]() -> Result<void> {
    check->close();
    return {};
  });
}

}  // namespace uffda::modules
