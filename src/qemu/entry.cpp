#include "qemu/entry.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/random.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/log.h"
#include "os/socket.h"
#include "qemu/channel.h"
#include "qemu/replies.h"
#include "qemu/stream.h"

namespace uffda::qemu {
namespace {

constexpr std::size_t kSpares = 16;  // restores that may be killed while QEMU does not answer, one after the other
constexpr Duration kTakesAnother = std::chrono::seconds(30);  // until QEMU has noticed that its source is gone
constexpr Duration kAnswersSoon = std::chrono::seconds(2);
constexpr int kTryEvery = 5;  // ms

Result<std::uint32_t> random_value() {
  std::uint32_t value = 0;
  if (::getrandom(&value, sizeof value, 0) != static_cast<ssize_t>(sizeof value)) return fail_errno(errno, "getrandom");
  return value;
}

Result<void> send_all(int stream, std::span<const std::byte> rest, Deadline deadline, Cancel cancel) {
  while (!rest.empty()) {
    auto sent = os::send_some(stream, rest);
    if (sent) {
      rest = rest.subspan(*sent);
    } else if (sent.error().code() == Errc::again) {
      UFFDA_TRY_VOID(cancel.wait(stream, POLLOUT, deadline));
    } else {
      return std::unexpected(sent.error());
    }
  }
  return {};
}

/// Reads until these bytes have come, whatever else does.
Result<void> skip_to(int stream, std::span<const std::byte> wanted, Deadline deadline, Cancel cancel) {
  std::vector<std::byte> come;
  std::array<std::byte, 65536> buffer{};
  for (;;) {
    const auto received = os::receive_some(stream, buffer);
    if (!received && received.error().code() == Errc::again) {
      UFFDA_TRY_VOID(cancel.wait(stream, POLLIN, deadline));
      continue;
    }
    if (!received) return std::unexpected(received.error());
    come.insert(come.end(), received->begin(), received->end());
    if (!std::ranges::search(come, wanted).empty()) return {};
    if (come.size() > wanted.size()) come.erase(come.begin(), come.end() - static_cast<std::ptrdiff_t>(wanted.size()));
  }
}

/// What QEMU says if a descriptor was given up to an earlier request, or never came.
bool has_no_such_descriptor(const Error& error) { return error.message().contains("has not been found"); }

Result<void> switch_postcopy_on(Qmp& qmp) {
  UFFDA_TRY_VOID(check_capabilities(qmp, {"postcopy-ram", "return-path"}));
  const nlohmann::json on = {{"capability", "postcopy-ram"}, {"state", true}};
  UFFDA_TRY(qmp.execute("migrate-set-capabilities", {{"capabilities", {on}}}));
  return {};
}

}  // namespace

Result<Entry> Entry::open(const std::string& qmp_path, Cancel cancel) {
  Kept kept;
  auto keeper = Keeper::find(qmp_path, kept);
  if (!keeper && keeper.error().code() != Errc::permission_denied) return std::unexpected(keeper.error());
  if (keeper && *keeper) {
    Qmp qmp = Qmp::adopt(std::move(kept.monitor), qmp_path, kept.restores, cancel);
    return Entry(std::move(qmp), *std::move(keeper), std::move(kept), cancel);
  }
  const bool may_start = keeper.has_value();
  Qmp qmp = UFFDA_TRY(Qmp::connect(qmp_path, may_start ? Qmp::OutOfBand::if_offered : Qmp::OutOfBand::no, cancel));
  if (may_start && qmp.has_out_of_band()) keeper = Keeper::start(qmp_path, qmp.fd());
  if (!keeper)
    log(LogLevel::warning, "{}: nobody keeps the monitor for another restore, should this one end early",
        keeper.error().message());
  return Entry(std::move(qmp), keeper ? *std::move(keeper) : nullptr, Kept{}, cancel);
}

Entry::~Entry() {
  if (keeper_ && !kept_.begun) complete();
}

void Entry::complete() {
  if (!keeper_) return;
  qmp_.heed({});  // what is given back now nobody else can
  const Deadline deadline = Deadline::after(kAnswersSoon);
  for (const Spare& spare : kept_.spares) {  // QEMU would have them for ever
    if (!qmp_.execute("closefd", {{"fdname", spare.name()}}, deadline)) break;
  }
  if (const auto ended = keeper_->end(); !ended)
    log(LogLevel::warning, "the keeper of this restore does not end: {}", ended.error().message());
  keeper_.reset();
}

void Entry::tell(Note note, std::uint64_t number, os::UniqueFd fd) {
  if (keeper_ && !keeper_->note(note, number, fd.get())) {
    log(LogLevel::warning,
        "the keeper of this restore is gone: if this restore ends before it is complete, the machine may "
        "have to be started again");
    keeper_.reset();
  }
  const auto applied = kept_.apply(note, number, std::move(fd));
  UFFDA_ASSERT(applied);
}

void Entry::note_running() {
  if (kept_.stream) tell(Note::let_go);
}

Result<Entry::Stream> Entry::enter() {
  if (auto end = UFFDA_TRY(recover())) return Stream{.way = Way::resumed, .end = *std::move(end)};
  const auto way = ask_way();
  if (!way) {
    if (way.error().code() == Errc::invalid_argument) kept_.begun = false;
    return std::unexpected(way.error());
  }
  if (*way == Way::from_the_start) UFFDA_TRY_VOID(switch_postcopy_on(qmp_));
  if (keeper_) UFFDA_TRY_VOID(give_spares());
  tell(Note::begun);
  if (*way == Way::from_the_start) {
    auto end = open_stream(qmp_, "migrate-incoming");
    if (!end) kept_.begun = false;
    return Stream{.way = *way, .end = UFFDA_TRY(std::move(end))};
  }
  if (auto end = UFFDA_TRY(recover())) return Stream{.way = *way, .end = *std::move(end)};
  return Stream{.way = *way, .end = UFFDA_TRY(open_stream(qmp_, "migrate-recover"))};
}

Result<Way> Entry::ask_way() {
  const MigrationState state = UFFDA_TRY(migration_state(qmp_));
  if (state.status.starts_with("postcopy")) {
    // It may not have noticed yet that its source is gone.
    UFFDA_TRY_VOID(wait_for_migration(qmp_, "postcopy-paused"));
    return Way::resumed;
  }
  const auto status = UFFDA_TRY(qmp_.execute("query-status"));
  const bool waits = text_of(status, "status") == "inmigrate";
  if (waits && (state.status.empty() || state.status == "none")) return Way::from_the_start;
  const char* const done = state.status == "completed"
                               ? ", and its last migration is complete: if it was restored, nothing is left to do"
                               : "";
  return fail(Errc::invalid_argument,
              fmt::format("this QEMU waits for no machine (it is '{}'{}): start one with the command line that the "
                          "machine was saved of, and -incoming defer",
                          text_of(status, "status"), done));
}

Result<void> Entry::give_spares() {
  std::uint64_t number = kept_.restores * kSpares;  // names that no earlier restore has used up
  for (const Spare& spare : kept_.spares) number = std::max(number, spare.number + 1);
  for (; kept_.spares.size() < kSpares; ++number)
    tell(Note::spare, number, UFFDA_TRY(give_end(qmp_, Spare{.number = number, .end = {}}.name())));
  return {};
}

/// A restore before this one ended while it told QEMU to go on. First QEMU does go on, with nobody who sends; only then
/// can it lose that stream. What of the answers the other one has read does not matter.
Result<void> Entry::settle() {
  const Deadline deadline = Deadline::after(kTakesAnother);
  const std::uint32_t value = UFFDA_TRY(random_value());
  std::vector<std::byte> words = to_resume();  // ignored, if it had been sent before
  const std::vector<std::byte> ping = to_ping(value);
  words.insert(words.end(), ping.begin(), ping.end());
  auto settled = send_all(kept_.stream->end.get(), words, deadline, cancel_);
  if (settled) settled = skip_to(kept_.stream->end.get(), pong(value), deadline, cancel_);
  if (settled || settled.error().code() == Errc::gone) {
    tell(Note::let_go);
    return {};
  }
  return std::unexpected(
      settled.error().within("QEMU does not go on where the restore before left it (run this again when it answers)"));
}

/// Nothing: there is no spare, or QEMU waits for no stream.
Result<std::optional<os::UniqueFd>> Entry::recover() {
  if (kept_.stream && kept_.taken) UFFDA_TRY_VOID(settle());
  bool inherited = kept_.stream.has_value();
  bool asked = false;
  const Deadline deadline = Deadline::after(kTakesAnother);
  for (;;) {
    if (!kept_.stream) {
      if (kept_.spares.empty()) return std::nullopt;
      tell(Note::handing, kept_.spares.front().number);
      inherited = false;
    }
    const auto taken =
        qmp_.execute_out_of_band("migrate-recover", {{"uri", fmt::format("fd:{}", kept_.stream->name())}});
    if (taken || (inherited && has_no_such_descriptor(taken.error()))) break;
    if (taken.error().code() != Errc::io) return std::unexpected(taken.error());
    if (has_no_such_descriptor(taken.error())) {
      tell(Note::let_go);
      continue;
    }
    // Not now: QEMU has not noticed yet that its source is gone; or it waits for none, which it can say then.
    if (const auto state = qmp_.take_answer()) {
      asked = false;
      if (!text_of(*state, "status").starts_with("postcopy")) return std::nullopt;
    }
    if (deadline.passed())
      return fail(Errc::timed_out, fmt::format("{} (for 30 s; run this again when query-migrate says postcopy-paused)",
                                               taken.error().message()));
    if (!asked) UFFDA_TRY_VOID(qmp_.ask("query-migrate"));
    asked = true;
    (void)::poll(nullptr, 0, kTryEvery);
  }
  tell(Note::taken);
  return std::move(kept_.stream->end);
}

}  // namespace uffda::qemu
