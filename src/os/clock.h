// The replaceable end of uffda::Clock.
#pragma once

#include "uffda/deadline.h"

namespace uffda::os {

using NowFunction = TimePoint (*)() noexcept;

/// From now on Clock::now() is `now`; null: the system's steady clock again. For tests and simulation: waits of threads
/// still take real time, but which deadline has passed is for this clock to say. Threads: any.
void replace_clock(NowFunction now) noexcept;

}  // namespace uffda::os
