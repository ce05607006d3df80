#include "mm/memory_type.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "mm/memory_object.h"

namespace uffda {

Result<void> validate(const UffdOps& ops) {
  const bool can_copy = ops.ioctls.has(UffdIoctl::copy);
  const bool can_continue = ops.ioctls.has(UffdIoctl::continue_);
  if (ops.modes.empty()) return fail(Errc::invalid_argument, "a memory type must raise at least one kind of fault");
  if (ops.modes.has(UffdMode::minor) && !can_continue)
    return fail(Errc::invalid_argument, "minor faults need CONTINUE");
  if (ops.modes.has(UffdMode::missing) && !can_copy && !can_continue) {
    return fail(Errc::invalid_argument, "missing faults need COPY or CONTINUE");
  }
  if (ops.modes.has(UffdMode::wp) && !ops.ioctls.has(UffdIoctl::writeprotect)) {
    return fail(Errc::invalid_argument, "write-protect faults need WRITEPROTECT");
  }
  if (ops.wp_async_only && !ops.modes.has(UffdMode::wp))
    return fail(Errc::invalid_argument, "asynchronous write-protection needs mode wp");
  if (ops.get_folio != nullptr && !can_continue) return fail(Errc::invalid_argument, "get_folio needs CONTINUE");
  return {};
}

bool raises_faults(const UffdOps& ops) { return !(ops.modes & UffdModes{UffdMode::missing, UffdMode::minor}).empty(); }

Result<os::UniqueFd> Backing::share_writable() {
  return fail(Errc::unsupported, "this memory type has no descriptor for clients to write to");
}

Result<void> Backing::write(ByteOffset, std::span<const std::byte>) {
  return fail(Errc::unsupported, "this memory type cannot be written to by a system call");
}

Result<std::span<std::byte>> Backing::in_place(ByteRange) {
  return fail(Errc::unsupported,
              "the folios of this memory type are larger than a staging buffer, and it gives no "
              "memory to fill them in place");
}

Result<std::unique_ptr<Backing>> MemoryType::create_with(ByteCount size, const std::string& name,
                                                         std::string_view options) const {
  if (!options.empty())
    return fail(Errc::invalid_argument, fmt::format("memory type {} has no options, not '{}'", this->name(), options));
  return create(size, name);
}

Result<std::unique_ptr<Backing>> MemoryType::adopt(ByteCount /*size*/, os::UniqueFd /*fd*/) const {
  return fail(Errc::unsupported, fmt::format("memory type {} does not outlive its server", name()));
}

FaultOutcome MemoryType::fault(MemoryObject& object, FolioIndex index, FaultFlags flags, const FolioWait& wait) const {
  if (flags.has(FaultFlag::userfault_continue))
    return object.find_folio(index) ? FaultOutcome::ready : FaultOutcome::later;
  return object.fault_in(index, wait);
}

Result<void> MemoryTypes::register_type(std::unique_ptr<MemoryType> type) {
  if (type->ops() == nullptr) {
    return fail(Errc::invalid_argument,
                fmt::format("memory type {}: it has no UffdOps, so userfaultfd cannot be used with it", type->name()));
  }
  if (auto valid = validate(*type->ops()); !valid) {
    return std::unexpected(valid.error().within(fmt::format("memory type {}", type->name())));
  }
  if (find(type->name()))
    return fail(Errc::already_exists, fmt::format("memory type {} is registered already", type->name()));
  types_.push_back(std::move(type));
  return {};
}

Result<const MemoryType*> MemoryTypes::find(std::string_view name) const {
  std::vector<std::string_view> names;
  for (const auto& type : types_) {
    if (type->name() == name) return type.get();
    names.push_back(type->name());
  }
  return fail(Errc::not_found, fmt::format("no memory type '{}'; there are: {}", name, fmt::join(names, ", ")));
}

}  // namespace uffda
