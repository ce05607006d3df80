// Threads of the core. The deterministic simulation (tests/sim) puts its own in their place.
#pragma once

#ifdef UFFDA_SIMULATED
#include "sim/thread.h"
#else

#include <cstdint>
#include <thread>

namespace uffda {

inline constexpr bool kSimulated = false;

using Thread = std::thread;
namespace this_thread = std::this_thread;

/// Where the simulation may let another thread go on, beside every lock and system call. Costs nothing here.
inline void preemption_point() {}

/// Faults that only the simulated build can have: it must find each of them.
enum class Canary : std::uint8_t {
  shown_before_filled,
  evicts_pinned,
  clean_before_written,
  copied_before_protected,
  logged_despite_pins,
  adopts_awaiting_as_clean,
  forgets_messages,
  adopts_without_wake,
};
constexpr bool canary(Canary) { return false; }

}  // namespace uffda

#endif
