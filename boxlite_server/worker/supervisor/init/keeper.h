/* The keeper of one command. */
#pragma once

#include "packet.h"

#include <sys/types.h>

/* Make the packet that tells how a process has ended. */
struct packet exited(uint32_t id, int status);

/* Be the keeper of a command: start it, do what the supervisor asks for, and tell it how the command ends. */
_Noreturn void keep(struct received *spawn, pid_t *pid, int supervisor);
