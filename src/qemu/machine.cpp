#include "qemu/machine.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "os/fd.h"
#include "qemu/ram_file.h"

namespace uffda::qemu {
namespace {

Result<Machine> open_image(Core& core, const std::string& uri) {
  Machine machine;
  machine.main = UFFDA_TRY(core.create_object(UFFDA_TRY(open_source(uri))));
  MemoryObject& object = *machine.main;
  const Deadline deadline = Deadline::after(core.options().deadline);
  std::vector<std::byte> bytes(std::min(kImageHead, object.size()).value);
  UFFDA_TRY_VOID(object.read({0}, bytes, deadline));
  auto head = parse_head(bytes, object.size());
  if (!head) return std::unexpected(head.error().within(object.source().name()));
  machine.state.machine = head->machine;
  machine.state.devices.resize(head->devices.length.value);
  UFFDA_TRY_VOID(object.read(head->devices.start, machine.state.devices, deadline));
  for (const PlacedBlock& placed : head->blocks)
    machine.blocks.push_back({.block = placed.block, .object = machine.main, .place = placed.place});
  return machine;
}

struct Stream {
  MachineState state;
  bool ignores_shared = false;
};

Result<Stream> read_stream(const std::string& file, RamFile& ram) {
  const os::UniqueFd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_errno(errno, file);
  StreamParser parser(ram);
  std::vector<std::byte> buffer(1U << 20U);
  for (;;) {
    const ssize_t size = ::read(fd.get(), buffer.data(), buffer.size());
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) return fail_errno(errno, file);
    if (size == 0) break;
    UFFDA_TRY_VOID(parser.push(std::span(buffer).first(static_cast<std::size_t>(size))));
  }
  Stream stream{.state = UFFDA_TRY(parser.finish()), .ignores_shared = parser.ignores_shared()};
  UFFDA_TRY_VOID(ram.finish(stream.state));
  return stream;
}

/// The one block whose pages the stream leaves out. Errors: unsupported.
Result<std::size_t> left_out(const Stream& stream, RamFile& file) {
  std::vector<std::size_t> missing;
  for (std::size_t i = 0; i < file.placed().size(); ++i) {
    if (!file.came(i)) missing.push_back(i);
  }
  if (missing.size() == 1 && stream.ignores_shared) return missing.front();
  return fail(Errc::unsupported,
              fmt::format("the stream leaves {} blocks of RAM out, and one is needed, whose bytes --ram has: save the "
                          "machine with x-ignore-shared, its RAM in one memory-backend-file",
                          missing.size()));
}

Result<Machine> open_stream_and_ram(Core& core, const StoredMachine& stored) {
  RamFile file = UFFDA_TRY(RamFile::create(std::filesystem::temp_directory_path()));
  auto stream = read_stream(stored.state, file);
  if (!stream) return std::unexpected(stream.error().within(stored.state));
  const std::size_t outside = UFFDA_TRY(left_out(*stream, file));
  Machine machine;
  machine.main = UFFDA_TRY(core.create_object(UFFDA_TRY(open_source(stored.ram))));
  const auto others = UFFDA_TRY(core.create_object(UFFDA_TRY(file.open())));
  for (std::size_t i = 0; i < file.placed().size(); ++i) {
    const PlacedBlock& placed = file.placed()[i];
    machine.blocks.push_back({.block = placed.block,
                              .object = i == outside ? machine.main : others,
                              .place = i == outside ? ByteOffset{0} : placed.place});
  }
  const RamBlock& block = machine.blocks[outside].block;
  if (machine.main->size() != block.length) {
    return fail(Errc::invalid_argument, fmt::format("--ram has {} bytes, and the block '{}' of the machine {}",
                                                    machine.main->size().value, block.name, block.length.value));
  }
  machine.state = std::move(stream->state);
  return machine;
}

}  // namespace

std::vector<RamBlock> Machine::ram() const {
  std::vector<RamBlock> ram;
  ram.reserve(blocks.size());
  for (const ServedBlock& served : blocks) ram.push_back(served.block);
  return ram;
}

Result<Machine> open_machine(Core& core, const StoredMachine& stored) {
  return stored.image.empty() ? open_stream_and_ram(core, stored) : open_image(core, stored.image);
}

}  // namespace uffda::qemu
