#include "exec/channel.h"

#include <span>

namespace uffda::exec {

bool tell(int channel, const Message& message, int descriptor) {
  return os::send_packet(channel, std::as_bytes(std::span(&message, 1)), {}, descriptor, os::Waiting::until)
      .has_value();
}

std::optional<Message> hear(int channel, os::UniqueFd* descriptor) {
  Message message;
  auto received = os::receive_packet(channel, std::as_writable_bytes(std::span(&message, 1)), os::Waiting::until);
  if (received && descriptor != nullptr && received->descriptor) *descriptor = std::move(received->descriptor);
  if (!received || received->size != sizeof message) return std::nullopt;
  return message;
}

}  // namespace uffda::exec
