#include "modules/module_source.h"

#include <fmt/format.h>

#include <algorithm>

namespace uffda::modules {
namespace {

constexpr std::uint64_t kMaxSize = std::uint64_t{1} << 62U;  // bytes
constexpr std::uint64_t kMaxBlock = kMaxFolio;
constexpr unsigned kMaxThreads = 8;  // of one parallel source

Result<void> check_properties(const SourceProperties& properties) {
  const std::uint64_t block = properties.block_size.value;
  if (properties.size.value == 0 || properties.size.value > kMaxSize)
    return fail(Errc::invalid_argument, fmt::format("its size is {} bytes", properties.size.value));
  if (block == 0 || block > kMaxBlock || (block & (block - 1)) != 0)
    return fail(Errc::invalid_argument,
                fmt::format("its block_size is {}: a power of two up to 1 MiB is needed", block));
  if (properties.parallel == 0 || properties.parallel > kMaxParallel)
    return fail(Errc::invalid_argument, fmt::format("its parallel is {}: 1 to 64 is needed", properties.parallel));
  return {};
}

class ModuleSource final : public PageSource {
 public:
  ModuleSource(std::shared_ptr<SourceOps> ops, std::unique_ptr<Calls> calls, bool asynchronous, Duration deadline,
               std::string name, const SourceProperties& properties)
      : ops_(std::move(ops)), calls_(std::move(calls)), asynchronous_(asynchronous), deadline_(deadline) {
    opened(std::move(name), properties);
  }
  ModuleSource(const ModuleSource&) = delete;
  ModuleSource& operator=(const ModuleSource&) = delete;
  ~ModuleSource() override {
    calls_->close("close", deadline_, [ops = ops_] { return ops->close(); });
    ops_->abandon();
  }

 private:
  void do_fetch(FetchTicket ticket) noexcept override;

  std::shared_ptr<SourceOps> ops_;
  std::unique_ptr<Calls> calls_;
  const bool asynchronous_;
  const Duration deadline_;
  BouncePool buffers_;
};

/// The module's answer, checked, as the ticket's.
void answer(FetchTicket ticket, const std::shared_ptr<Bounce>& buffer, const std::string& module,
            const Calls::Value& value) {
  const std::size_t asked = buffer->bytes().size();
  if (!value) return std::move(ticket).fail(value.error());
  if (!buffer->guard_is_whole())
    return std::move(ticket).fail(Error(Errc::protocol, module + ": fetch: it wrote beyond the end of its buffer"));
  const auto got = static_cast<std::uint64_t>(*value);
  if (*value < 0 || got > asked) {
    return std::move(ticket).fail(
        Error(Errc::protocol, fmt::format("{}: fetch: it reported {} of {} bytes", module, *value, asked)));
  }
  if (got < asked) {
    return std::move(ticket).fail(
        Error(Errc::io, fmt::format("{}: fetch: short read: {} of {} bytes", module, got, asked)));
  }
  std::ranges::copy(buffer->bytes(), ticket.buffer().begin());
  std::move(ticket).complete({asked});
}

void ModuleSource::do_fetch(FetchTicket ticket) noexcept {
  const ByteRange range = ticket.range();
  auto taken = buffers_.take(range.length.value);
  if (!taken) return std::move(ticket).fail(taken.error());
  const std::shared_ptr<Bounce> buffer = *std::move(taken);
  const Deadline deadline = Deadline::at(std::min(ticket.deadline().when(), Clock::now() + deadline_));
  auto held = std::make_shared<FetchTicket>(std::move(ticket));
  auto done = [held, buffer, module = calls_->module()](const Calls::Value& value) {
    answer(std::move(*held), buffer, module, value);
  };
  auto work = [ops = ops_, offset = range.start, buffer, deadline,
               asynchronous = asynchronous_](const Calls::Answer& reply) {
    if (asynchronous) return ops->fetch_async(offset, buffer, deadline, reply);
    (void)reply(ops->fetch(offset, buffer));
  };
  calls_->start("fetch", deadline, std::move(work), std::move(done));
}

Result<SourceProperties> ask_properties(Calls& calls, const std::shared_ptr<SourceOps>& ops, Duration deadline) {
  const auto asked = std::make_shared<SourceProperties>();  // of the call, which may be written off
  UFFDA_TRY(calls.call("properties", Deadline::after(deadline), [=]() -> Calls::Value {
    *asked = UFFDA_TRY(ops->properties());
    return 0;
  }));
  if (auto valid = check_properties(*asked); !valid) return std::unexpected(valid.error().within(calls.module()));
  return *asked;
}

}  // namespace

Result<std::unique_ptr<PageSource>> open_module_source(const std::shared_ptr<SourceKind>& kind,
                                                       const std::string& label, const std::string& name,
                                                       const Arguments& arguments, Duration deadline) {
  const SourceAbout& about = kind->about();
  auto calls = std::make_unique<Calls>(fmt::format("{}, source {}", label, about.name),
                                       about.parallel ? kMaxThreads : 1, Calls::Lost::all);
  const std::shared_ptr<SourceOps> ops = UFFDA_TRY(make_in_time<SourceOps>(
      *calls, "open", deadline, [=] { return kind->open(arguments); },
      [](SourceOps& late) { [[maybe_unused]] const auto closed = late.close(); }));
  const auto properties = ask_properties(*calls, ops, deadline);
  if (!properties) {
    calls->close("close", deadline, [ops] { return ops->close(); });
    ops->abandon();
    return std::unexpected(properties.error());
  }
  calls->limit_open(properties->parallel);
  return std::make_unique<ModuleSource>(ops, std::move(calls), about.asynchronous, deadline, name, *properties);
}

}  // namespace uffda::modules
