#include "server/attach.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <linux/userfaultfd.h>

#include <fcntl.h>
#include <algorithm>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "server/kept_state.h"
#include "server/service.h"

namespace uffda {
namespace {

Result<void> check_named(const std::vector<NamedRange>& named) {
  for (const NamedRange& range : named) {
    const std::string text = fmt::format("{:x}-{:x}", range.start.value, range.end().value);
    if (range.length.value == 0 || range.end() < range.start)
      return fail(Errc::invalid_argument, fmt::format("{} is a range of no bytes", text));
    if ((range.start.value | range.length.value | range.offset.value) % kPageSize.value != 0)
      return fail(Errc::invalid_argument, fmt::format("{} and its offset are not whole pages of 4 KiB", text));
  }
  const auto overlap = std::ranges::adjacent_find(
      named, [](const NamedRange& one, const NamedRange& next) { return one.end() > next.start; });
  if (overlap == named.end()) return {};
  return fail(Errc::invalid_argument,
              fmt::format("{:x}-{:x} and {:x}-{:x} overlap", overlap->start.value, overlap->end().value,
                          (overlap + 1)->start.value, (overlap + 1)->end().value));
}

/// What of [start, end) no range of `ranges`, sorted and disjoint, covers.
template <typename Range>
void add_gaps(Address start, Address end, const std::vector<Range>& ranges, std::vector<PlainRange>& gaps) {
  for (const Range& range : ranges) {
    if (range.end() <= start) continue;
    if (range.start >= end) break;
    if (range.start > start) gaps.push_back({.start = start, .length = range.start - start});
    start = range.end();
  }
  if (start < end) gaps.push_back({.start = start, .length = end - start});
}

/// The part of `named` in `trapped`, which overlap.
Result<NamedRange> served_part(const NamedRange& named, const os::TrappedRange& trapped) {
  if (trapped.minor) {
    return fail(
        Errc::invalid_argument,
        fmt::format("{:x}-{:x} is registered MINOR: its pages are in the cache of the server that died, and only "
                    "that one's holder can start another (uffda serve --holder)",
                    trapped.start.value, trapped.end().value));
  }
  const Address start = std::max(named.start, trapped.start);
  const Address end = std::min(named.end(), trapped.end());
  return NamedRange{
      .start = start, .length = end - start, .name = named.name, .offset = named.offset + (start - named.start)};
}

std::string size_of(const std::vector<PlainRange>& ranges) {
  ByteCount all;
  for (const PlainRange& range : ranges) all += range.length;
  return fmt::format("{} KiB in {} range{}", all.value / 1024, ranges.size(), ranges.size() == 1 ? "" : "s");
}

constexpr std::size_t kShown = 8;
std::string listed(const std::vector<PlainRange>& ranges) {
  std::vector<std::string> texts;
  for (const PlainRange& range : ranges) {
    if (texts.size() == kShown) {
      texts.emplace_back("...");
      break;
    }
    texts.push_back(fmt::format("{:x}-{:x}", range.start.value, (range.start + range.length).value));
  }
  return fmt::format("{}", fmt::join(texts, " "));
}

Result<void> check_alone(int userfaultfd, pid_t pid, OtherHandlers others) {
  const os::Sharers sharers = UFFDA_TRY(os::sharers_of(userfaultfd, pid));
  if (sharers.unseen != 0)
    log(LogLevel::warning, "{} processes could not be asked whether they serve process {}, too", sharers.unseen, pid);
  if (sharers.processes.empty()) return {};
  std::vector<std::string> names;
  names.reserve(sharers.processes.size());
  for (const os::Process& process : sharers.processes)
    names.push_back(fmt::format("{} ({})", process.pid, process.name));
  const std::string who = fmt::format("{}", fmt::join(names, ", "));
  if (others == OtherHandlers::refuse) {
    return fail(
        Errc::busy,
        fmt::format("its userfaultfd is open in other processes, too: {}. If one of them reads it, two handlers "
                    "would take each other's faults; if none does, say --force",
                    who));
  }
  log(LogLevel::warning, "the userfaultfd is open in other processes, too, which had better not read it: {}", who);
  return {};
}

Error with_descriptors(Error error, pid_t pid) {
  if (error.code() != Errc::not_found && error.code() != Errc::invalid_argument) return error;
  const std::vector<int> all = os::userfaultfds_of(pid);
  if (all.empty()) return error;
  return Error(error.code(),
               fmt::format("{}; the userfaultfds of process {}: {}", error.context(), pid, fmt::join(all, ", ")),
               error.sys_errno());
}

}  // namespace

Result<AttachPlan> plan_attach(std::vector<NamedRange> named, const std::vector<os::TrappedRange>& trapped) {
  std::ranges::sort(named, {}, &NamedRange::start);
  UFFDA_TRY_VOID(check_named(named));
  AttachPlan plan;
  for (const NamedRange& name : named) {
    for (const os::TrappedRange& range : trapped) {
      if (range.end() <= name.start || range.start >= name.end()) continue;
      const NamedRange part = UFFDA_TRY(served_part(name, range));
      if (!plan.served.empty() && range.page_size != plan.page_size) {
        return fail(Errc::invalid_argument, "its pages have two sizes: an attached process has pages of one");
      }
      plan.page_size = range.page_size;
      plan.served.push_back(part);
    }
    add_gaps(name.start, name.end(), trapped, plan.left);
  }
  if (plan.served.empty()) return fail(Errc::invalid_argument, "nothing of what is named is registered");
  for (const os::TrappedRange& range : trapped) add_gaps(range.start, range.end(), named, plan.unnamed);
  return plan;
}

Result<Attachment> take_attachment(pid_t pid, int fd, std::vector<NamedRange> named, OtherHandlers others) {
  auto taken = os::take_descriptor(pid, fd);
  if (!taken) return std::unexpected(with_descriptors(taken.error(), pid));
  auto info = os::userfault_info(taken->get());
  if (!info) {
    return std::unexpected(
        with_descriptors(Error(Errc::invalid_argument, fmt::format("descriptor {} is not a userfaultfd", fd)), pid));
  }
  UFFDA_TRY_VOID(check_alone(taken->get(), pid, others));
  AttachPlan plan = UFFDA_TRY(plan_attach(std::move(named), UFFDA_TRY(os::trapped_ranges(pid))));
  return Attachment{.process = UFFDA_TRY(os::open_process(pid)),
                    .userfaultfd = *std::move(taken),
                    .info = *info,
                    .plan = std::move(plan)};
}

Result<void> serve_attachment(Service& service, const KeptState* kept, const Attachment& attachment) {
  os::UniqueFd copy(::fcntl(attachment.userfaultfd.get(), F_DUPFD_CLOEXEC, 0));
  if (!copy) return fail_errno(errno, "a copy of the userfaultfd");
  handoff::Token token{};
  if (kept != nullptr) std::ranges::copy(kept->seed(), std::begin(token.bytes));
  std::vector<Service::CopiedPlace> places;
  places.reserve(attachment.plan.served.size());
  for (const NamedRange& range : attachment.plan.served)
    places.push_back(
        {.name = range.name, .place = {.address = range.start, .length = range.length, .offset = range.offset}});
  os::ProcessHandle process{.pid = attachment.process.pid,
                            .pidfd = os::UniqueFd(::fcntl(attachment.process.pidfd.get(), F_DUPFD_CLOEXEC, 0))};
  return service.attach_copied({.userfaultfd = std::move(copy),
                                .features = attachment.info.features,
                                .wanted = token,
                                .process = std::move(process)},
                               places);
}

std::vector<std::string> tell_plan(const Attachment& attachment) {
  const AttachPlan& plan = attachment.plan;
  std::vector<std::string> lines;
  std::vector<PlainRange> served;
  served.reserve(plan.served.size());
  for (const NamedRange& range : plan.served) served.push_back({.start = range.start, .length = range.length});
  lines.push_back(fmt::format("process {}: {} served", attachment.process.pid, size_of(served)));
  if (attachment.info.waiting != 0) {
    lines.push_back(fmt::format("{} threads wait at absent pages; {} of their faults had been read and come again",
                                attachment.info.waiting, attachment.info.forgotten));
  }
  if (!plan.left.empty()) {
    lines.push_back(
        fmt::format("{} named and not registered: the client has dropped it, or it is lost. What is absent "
                    "there is zeroes: {}",
                    size_of(plan.left), listed(plan.left)));
  }
  if (!plan.unnamed.empty()) {
    lines.push_back(fmt::format("{} registered and not named: SIGBUS for who touches an absent page: {}",
                                size_of(plan.unnamed), listed(plan.unnamed)));
  }
  if ((attachment.info.features & UFFD_FEATURE_EVENT_REMOVE) == 0) {
    lines.emplace_back(
        "its userfaultfd does not tell what the client drops (no EVENT_REMOVE): dropped pages show the "
        "source's bytes again");
  }
  return lines;
}

}  // namespace uffda
