// The memory types that come with uffda.
#pragma once

#include <memory>

#include "mm/memory_type.h"

namespace uffda {

/// Private anonymous memory: no page cache, so nothing is shared, and contents go to who waits by COPY.
std::unique_ptr<MemoryType> make_anon_type();
/// A memfd: the page cache is shared by everybody who maps it; published by one write, mapped by CONTINUE.
std::unique_ptr<MemoryType> make_shmem_type();
/// The same in folios of 2 MiB, for copies into huge pages.
std::unique_ptr<MemoryType> make_shmem_2m_type();
/// Huge pages of 2 MiB, and of 1 GiB: a memfd too, whose pages are reserved as long as the object lives.
std::unique_ptr<MemoryType> make_hugetlb_type();
std::unique_ptr<MemoryType> make_hugetlb_1g_type();
/// KVM's memory for guests: populated before it is mapped, because userfaultfd has no faults for it. Option: vm=FD.
std::unique_ptr<MemoryType> make_guest_memfd_type();

/// Registers them all, and those that modules have added.
Result<void> register_builtin_types(MemoryTypes& types);

}  // namespace uffda
