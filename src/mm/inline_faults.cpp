#include "mm/inline_faults.h"

#include <csignal>

#include <array>
#include <atomic>
#include <cerrno>
#include <mutex>

namespace uffda {
namespace {

std::array<std::atomic<AddressSpace*>, InlineFaults::kMaxSpaces> inline_spaces{};
struct sigaction previous_action{};

/// The SIGBUS is not ours, or the page cannot be had: what would have happened without us happens.
void pass_on(int signal, siginfo_t* info, void* context) {
  if ((previous_action.sa_flags & SA_SIGINFO) != 0 && previous_action.sa_sigaction != nullptr) {
    previous_action.sa_sigaction(signal, info, context);
  } else if (previous_action.sa_handler == SIG_DFL || previous_action.sa_handler == SIG_IGN) {
    ::signal(SIGBUS, SIG_DFL);  // the access is repeated, and kills
  } else {
    previous_action.sa_handler(signal);
  }
}

void on_sigbus(int signal, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  const Address address{reinterpret_cast<std::uintptr_t>(info->si_addr)};
  bool resolved = false;
  for (auto& slot : inline_spaces) {
    AddressSpace* space = slot.load(std::memory_order_acquire);
    if (space == nullptr) continue;
    const AddressSpace::InlineOutcome outcome = space->handle_inline(address);
    if (outcome == AddressSpace::InlineOutcome::not_ours) continue;
    resolved = outcome == AddressSpace::InlineOutcome::resolved;
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
    if (inline_spaces.at(slot).compare_exchange_strong(expected, space.get())) {
      return std::unique_ptr<InlineFaults>(new InlineFaults(std::move(space), slot));
    }
  }
  return fail(Errc::no_memory, "too many engines that handle faults in the faulting thread: at most 16 in one process");
}

InlineFaults::~InlineFaults() {
  inline_spaces.at(slot_).store(nullptr, std::memory_order_release);
  space_->close();
}

}  // namespace uffda
