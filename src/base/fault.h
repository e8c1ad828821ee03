/* Named fault points: places at which a test lets this process die or stall, to see that nothing is
 * lost.
 *
 * CR_FAULT=NAME:kill in the environment ends the process there by SIGKILL; NAME:stop stops it there
 * by SIGSTOP, the first time it comes there. Read once at start; without the variable a point costs
 * one load. */
#pragma once

void fault_init(const char *spec); /* of CR_FAULT; NULL is none */
void fault_point(const char *name);
