// Tells a process from a copy of it that no handler saw being made (a fork by raw system call). Such a child has our
// tables, and our lock perhaps held by a thread that it does not have.
#pragma once

namespace uffda::shim {

/// What must be made anew in a copy.
enum class Owned { kLock, kSpaces };

/// Starts watching; before the first userfaultfd is attached. False: the kernel cannot (Linux 4.14 can).
bool mark_memory();
/// True once for each kind in a copy of the process.
bool was_copied(Owned what);
/// In a child whose handlers ran: it has put everything right itself.
void renew_mark();

}  // namespace uffda::shim
