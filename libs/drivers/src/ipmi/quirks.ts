/**
 * Where BMCs differ from IPMI v2.0 and from each other, and what the driver does about it. Nothing here is looked up by name: the driver's way suits all of
 * them, so no operator has to know which board it is. The table is for who reads the code or asks why; docs/generated/quirks.md is printed from it.
 */
export interface IpmiQuirk {
  boards: string
  does: string
  weDo: string
  /** The file that does it. */
  file: string
}

export const ipmiQuirks: readonly IpmiQuirk[] = [
  {
    boards: 'Intel M50CYP, X8DTG, MSI',
    does: 'refuse a cipher suite with "insufficient resources", "role not authorised" or another wrong status',
    weDo: 'take those statuses for a dislike of the suite, once, and try the other one',
    file: 'login.ts',
  },
  {
    boards: 'made of pyghmi',
    does: 'answer with suite 3 whatever was asked for',
    weDo: 'take it where the settings allow that suite too, and refuse it otherwise',
    file: 'login.ts',
  },
  {
    boards: 'made of pyghmi, some others',
    does: 'keep silent about unknown users instead of refusing them',
    weDo: 'say that the user name is the first thing to check where only RAKP 1 stays without an answer',
    file: 'login.ts',
  },
  {
    boards: 'all, in five different ways',
    does: 'answer a repeated RAKP 1 or 3 wrongly',
    weDo: 'never repeat them: the whole set-up begins anew with other ids, and the BMC is told that the old one is given up',
    file: 'login.ts',
  },
  {
    boards: 'Intel Tiger 4',
    does: 'answer a repeated set-up only from another source port',
    weDo: 'change the port after two attempts',
    file: 'login.ts',
  },
  {
    boards: 'OpenBMC',
    does: 'checks the exact length of a user name, and writes four pad bytes where none are needed',
    weDo: 'do not pad the name; find the authcode from the end and believe the pad length byte',
    file: 'framing.ts',
  },
  {
    boards: 'Cisco UCS, Dell R610',
    does: 'drop the first packet of a session unless its number is 1',
    weDo: 'number sessions from 1; nothing before the session counts',
    file: 'session.ts',
  },
  {
    boards: 'Supermicro X9',
    does: 'compute message checksums wrongly inside good authcodes',
    weDo: 'judge by the authcode alone within a session',
    file: 'session.ts',
  },
  {
    boards: 'ASRock in shared mode',
    does: 'counts session numbers in twos',
    weDo: 'take what is newer than everything seen, however far ahead',
    file: 'receive-window.ts',
  },
  {
    boards: 'some',
    does: 'answer "duplicated request" for ever',
    weDo: 'ask again under another number after one wait',
    file: 'session.ts',
  },
  {
    boards: 'all',
    does: 'forget sessions after 30 to 60 s of silence, or in a restart',
    weDo: 'take silence in a kept session for that, and log in afresh without a word',
    file: 'client.ts',
  },
  {
    boards: 'Asus, Sun, Intel, Vadatech',
    does: 'lie in Get Channel Authentication Capabilities about K_g and user names',
    weDo: 'report the flags and never refuse because of them',
    file: 'discovery.ts',
  },
  {
    boards: 'ipmi_sim and others',
    does: 'answer the list of suites in v1.5 framing only, or list what they do not have',
    weDo: 'ask in v1.5 framing, once; what is not listed is tried last, not dropped',
    file: 'discovery.ts',
  },
  {
    boards: 'made of pyghmi, virtualbmc, ipmi_sim',
    does: 'drop the UEFI or valid flag of the boot override',
    weDo: 'read back what was kept and say so',
    file: 'boot-next.ts',
  },
  {
    boards: 'made of pyghmi',
    does: 'have no power cycle, or refuse it while off',
    weDo: 'switch off, see it off, and switch on',
    file: 'power.ts',
  },
  {
    boards: 'all, under load',
    does: 'need 0.5 to 3 s for a step of the login',
    weDo: 'learn each BMC\'s pace and wait four times as long; an answer to a step that was given up counts as "slow, not gone"',
    file: 'patience.ts',
  },
  {
    boards: 'some',
    does: 'deliver serial characters again after they were acknowledged, or take a part of a packet',
    weDo: 'count what was taken of each packet and offer the rest again',
    file: 'sol.ts',
  },
]
