#include "modules/module_type.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>

#include "mm/memory_object.h"

namespace uffda::modules {
namespace {

constexpr unsigned kModuleThreads = 4;  // of one memory with the parallel thread model

Result<void> check_descriptor(int fd, ByteCount least) {
  struct stat status{};
  if (::fstat(fd, &status) != 0) return fail_errno(errno, "its descriptor");
  if (status.st_size >= 0 && static_cast<std::uint64_t>(status.st_size) >= least.value) return {};
  return fail(Errc::protocol,
              fmt::format("its descriptor's file has {} bytes, and the memory needs {}", status.st_size, least.value));
}

class ModuleBacking final : public Backing {
 public:
  ModuleBacking(ModuleMemory memory, bool shareable, ByteCount mapped, Duration deadline, os::UniqueFd mapping)
      : ops_(std::move(memory.ops)),
        calls_(std::move(memory.calls)),
        shareable_(shareable),
        mapped_(mapped),
        deadline_(deadline),
        mapping_(std::move(mapping)) {}
  ModuleBacking(const ModuleBacking&) = delete;
  ModuleBacking& operator=(const ModuleBacking&) = delete;
  ~ModuleBacking() override {
    calls_->close("destroy", deadline_, [ops = ops_] { return ops->destroy(); });
    ops_->abandon();
  }

  Result<void> publish(ByteRange range, std::span<const std::byte> bytes) override {
    const std::shared_ptr<Bounce> copy = UFFDA_TRY(buffers_.take(bytes.size()));
    std::ranges::copy(bytes, copy->bytes().begin());
    return call("publish", [ops = ops_, range, copy] { return ops->publish(range.start, copy); });
  }

  Result<void> drop(ByteRange range) override {
    return call("drop", [ops = ops_, range] { return ops->drop(range); });
  }

  Result<void> read(ByteOffset offset, std::span<std::byte> bytes) override {
    while (!bytes.empty()) {
      const auto part = bytes.first(std::min<std::size_t>(bytes.size(), kMaxFolio));
      const std::shared_ptr<Bounce> buffer = UFFDA_TRY(buffers_.take(part.size()));
      UFFDA_TRY_VOID(call("read", [ops = ops_, offset, buffer] { return ops->read(offset, buffer); }));
      if (!buffer->guard_is_whole())
        return fail(Errc::protocol, calls_->module() + ": read: it wrote beyond the end of its buffer");
      std::ranges::copy(buffer->bytes(), part.begin());
      offset = offset + ByteCount{part.size()};
      bytes = bytes.subspan(part.size());
    }
    return {};
  }

  Result<os::UniqueFd> share() override;
  [[nodiscard]] int mapping_fd() const override { return mapping_.get(); }

 private:
  Result<void> call(const char* what, std::function<Calls::Value()> work) {
    UFFDA_TRY(calls_->call(what, Deadline::after(deadline_), std::move(work)));
    return {};
  }

  std::shared_ptr<MemoryOps> ops_;
  std::unique_ptr<Calls> calls_;
  const bool shareable_;
  const ByteCount mapped_;
  const Duration deadline_;
  os::UniqueFd mapping_;
  BouncePool buffers_;
};

/// Asks for a descriptor in time.
Result<os::UniqueFd> ask_descriptor(Calls& calls, const char* what, Duration deadline,
                                    std::function<Result<os::UniqueFd>()> ask) {
  const auto fd = std::make_shared<os::UniqueFd>();
  UFFDA_TRY(calls.call(what, Deadline::after(deadline), [fd, ask = std::move(ask)]() -> Calls::Value {
    *fd = UFFDA_TRY(ask());
    return 0;
  }));
  return std::move(*fd);
}

Result<os::UniqueFd> ModuleBacking::share() {
  if (!shareable_) return fail(Errc::unsupported, calls_->module() + ": its memory cannot be shared");
  os::UniqueFd fd = UFFDA_TRY(ask_descriptor(*calls_, "share", deadline_, [ops = ops_] { return ops->share(); }));
  const int flags = ::fcntl(fd.get(), F_GETFL);
  if ((flags & O_ACCMODE) != O_RDONLY)
    return fail(Errc::protocol, calls_->module() + ": share: its descriptor is not open for reading only");
  if (auto valid = check_descriptor(fd.get(), mapped_); !valid)
    return std::unexpected(valid.error().within(calls_->module() + ": share"));
  return fd;
}

class ModuleType final : public MemoryType {
 public:
  ModuleType(std::shared_ptr<TypeKind> kind, std::string label, Duration deadline)
      : kind_(std::move(kind)), label_(std::move(label)), deadline_(deadline), ops_(kind_->about().ops) {
    if (kind_->about().hook)
      ops_.get_folio = [](MemoryObject& object, FolioIndex index) { return object.find_folio(index); };
  }

  [[nodiscard]] std::string_view name() const override { return kind_->about().name; }
  [[nodiscard]] const UffdOps* ops() const override { return &ops_; }
  [[nodiscard]] ByteCount folio_size() const override { return {kind_->about().folio_size}; }

  Result<std::unique_ptr<Backing>> create(ByteCount size, const std::string& name) const override {
    ModuleMemory memory = UFFDA_TRY(create_module_memory(kind_, label_, size, name, deadline_));
    const ByteCount mapped{align_up(size.value, folio_size().value)};
    auto mapping = ask_descriptor(*memory.calls, "mapping", deadline_, [ops = memory.ops] { return ops->mapping(); });
    if (mapping) {
      if (auto valid = check_descriptor(mapping->get(), mapped); !valid)
        mapping = std::unexpected(valid.error().within(memory.calls->module() + ": mapping"));
    }
    os::UniqueFd fd = mapping ? std::move(*mapping) : os::UniqueFd();
    // From here on the backing sees to the end of the memory.
    auto backing =
        std::make_unique<ModuleBacking>(std::move(memory), kind_->about().shareable, mapped, deadline_, std::move(fd));
    if (!mapping) return std::unexpected(mapping.error());
    return backing;
  }

 private:
  std::shared_ptr<TypeKind> kind_;
  std::string label_;
  Duration deadline_;
  UffdOps ops_;
};

}  // namespace

Result<ModuleMemory> create_module_memory(const std::shared_ptr<TypeKind>& kind, const std::string& label,
                                          ByteCount size, const std::string& name, Duration deadline) {
  static std::atomic<std::uint64_t> next{1};
  const TypeAbout& about = kind->about();
  // A memory of which a call was lost may still be written to by that call: it takes no other until that one is back.
  auto calls = std::make_unique<Calls>(fmt::format("{}, memory type {}", label, about.name),
                                       about.parallel ? kModuleThreads : 1, Calls::Lost::any);
  auto ops = UFFDA_TRY(make_in_time<MemoryOps>(
      *calls, "create", deadline,
      [kind, size, name, object = next.fetch_add(1)] { return kind->create(object, size, name); },
      [](MemoryOps& late) { [[maybe_unused]] const auto destroyed = late.destroy(); }));
  return ModuleMemory{.ops = std::move(ops), .calls = std::move(calls)};
}

std::unique_ptr<MemoryType> make_module_type(std::shared_ptr<TypeKind> kind, std::string label, Duration deadline) {
  return std::make_unique<ModuleType>(std::move(kind), std::move(label), deadline);
}

}  // namespace uffda::modules
