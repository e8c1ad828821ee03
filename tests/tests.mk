# Targets that run as root and need more than the build: set up what is missing, then run.

$(B)/testbed-init: tools/testbed-init.c
	@echo '  CC      $@'
	@mkdir -p $(@D)
	$(Q)$(CC) -D_GNU_SOURCE -std=gnu17 $(WARN) $(CFLAGS) -o $@ $<
