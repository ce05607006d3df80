#include "mm/inline_faults.h"

#include <ucontext.h>

#include <csignal>

#include <array>
#include <atomic>
#include <cerrno>
#include <mutex>
#include <optional>
#include <thread>

namespace uffda {
namespace {

/// The address spaces, and how many handlers look at each: one that goes waits until nobody does.
struct Slot {
  std::atomic<AddressSpace*> space{nullptr};
  std::atomic<unsigned> users{0};
};
std::array<Slot, InlineFaults::kMaxSpaces> slots{};
struct sigaction previous_action{};

/// The SIGBUS is not ours, or the page cannot be had: what would have happened without us happens.
void pass_on(int signal, siginfo_t* info, void* context) {
  const bool sent = info->si_code <= 0;  // by a process: no access will be repeated
  if ((previous_action.sa_flags & SA_SIGINFO) != 0 && previous_action.sa_sigaction != nullptr) {
    previous_action.sa_sigaction(signal, info, context);
  } else if (previous_action.sa_handler == SIG_DFL || previous_action.sa_handler == SIG_IGN) {
    if (sent && previous_action.sa_handler == SIG_IGN) return;
    ::signal(SIGBUS, SIG_DFL);  // the access is repeated, and kills
    if (sent) ::raise(SIGBUS);
  } else {
    previous_action.sa_handler(signal);
  }
}

AddressSpace::Touch touch_of(const void* context) {
  constexpr greg_t kWrite = 2;  // of the page fault's error code
  const auto& registers = static_cast<const ucontext_t*>(context)->uc_mcontext.gregs;
  return (registers[REG_ERR] & kWrite) != 0 ? AddressSpace::Touch::store : AddressSpace::Touch::load;
}

std::optional<AddressSpace::InlineOutcome> try_slot(Slot& slot, Address address, AddressSpace::Touch touch) {
  if (slot.space.load(std::memory_order_relaxed) == nullptr) return std::nullopt;
  std::optional<AddressSpace::InlineOutcome> outcome;
  // Sequentially consistent on both sides: either the one who goes sees this user, or this user sees that it went.
  slot.users.fetch_add(1);
  if (AddressSpace* space = slot.space.load(); space != nullptr) outcome = space->handle_inline(address, touch);
  slot.users.fetch_sub(1);
  return outcome;
}

void on_sigbus(int signal, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  const Address address{reinterpret_cast<std::uintptr_t>(info->si_addr)};
  bool resolved = false;
  for (auto& slot : slots) {
    if (info->si_code <= 0) break;  // not a fault
    const std::optional<AddressSpace::InlineOutcome> outcome = try_slot(slot, address, touch_of(context));
    if (!outcome || *outcome == AddressSpace::InlineOutcome::not_ours) continue;
    resolved = *outcome == AddressSpace::InlineOutcome::resolved;
    break;
  }
  errno = saved_errno;
  if (!resolved) pass_on(signal, info, context);
}

void install_handler_once() {
  static std::once_flag installed;
  std::call_once(installed, [] {
    struct sigaction action{};
    action.sa_sigaction = on_sigbus;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    ::sigaction(SIGBUS, &action, &previous_action);
  });
}

}  // namespace

Result<std::unique_ptr<InlineFaults>> InlineFaults::start(std::shared_ptr<AddressSpace> space) {
  install_handler_once();
  for (std::size_t slot = 0; slot < kMaxSpaces; ++slot) {
    AddressSpace* expected = nullptr;
    if (slots.at(slot).space.compare_exchange_strong(expected, space.get())) {
      return std::unique_ptr<InlineFaults>(new InlineFaults(std::move(space), slot));
    }
  }
  return fail(Errc::no_memory, "too many engines that handle faults in the faulting thread: at most 16 in one process");
}

InlineFaults::~InlineFaults() {
  slots.at(slot_).space.store(nullptr);
  while (slots.at(slot_).users.load() != 0) std::this_thread::yield();
  space_->close();
}

}  // namespace uffda
