#pragma once
#define CR_VERSION "0.1.0"
