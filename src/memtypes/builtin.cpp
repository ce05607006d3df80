#include "memtypes/builtin.h"

namespace uffda {

Result<void> register_builtin_types(MemoryTypes& types) {
  UFFDA_TRY_VOID(types.register_type(make_anon_type()));
  return types.register_type(make_shmem_type());
}

}  // namespace uffda
