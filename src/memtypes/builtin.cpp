#include "memtypes/builtin.h"

#include "memtypes/added.h"

namespace uffda {

Result<void> register_builtin_types(MemoryTypes& types) {
  UFFDA_TRY_VOID(types.register_type(make_anon_type()));
  UFFDA_TRY_VOID(types.register_type(make_shmem_type()));
  UFFDA_TRY_VOID(types.register_type(make_shmem_2m_type()));
  UFFDA_TRY_VOID(types.register_type(make_hugetlb_type()));
  UFFDA_TRY_VOID(types.register_type(make_hugetlb_1g_type()));
  UFFDA_TRY_VOID(types.register_type(make_guest_memfd_type()));
  return register_added_types(types);
}

}  // namespace uffda
