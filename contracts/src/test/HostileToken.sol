// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// FOR TESTS ONLY: a token that misbehaves in one chosen way. No deployment has it.
contract HostileToken {
    /// How it misbehaves when it moves.
    enum Way {
        None,
        CallsBack,
        ChargesSender,
        ReturnsFalse,
        ReturnsNothing
    }

    uint8 public constant decimals = 6;

    mapping(address account => uint256) public balanceOf;
    Way public way;
    /// What it calls when it moves, and how often that went well or failed.
    address public target;
    bytes public call;
    uint256 public succeeded;
    uint256 public failed;

    /// Misbehaves in this way from now on.
    function behave(Way way_, address target_, bytes calldata call_) external {
        way = way_;
        target = target_;
        call = call_;
    }

    function mint(address to, uint256 amount) external {
        balanceOf[to] += amount;
    }

    function approve(address, uint256) external pure returns (bool) {
        return true;
    }

    function allowance(address, address) external pure returns (uint256) {
        return type(uint256).max;
    }

    function transfer(address to, uint256 amount) external returns (bool) {
        return _move(msg.sender, to, amount);
    }

    function transferFrom(address from, address to, uint256 amount) external returns (bool) {
        return _move(from, to, amount);
    }

    /// Asks for no signature.
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 amount,
        uint256,
        uint256,
        bytes32,
        bytes calldata
    ) external {
        _move(from, to, amount);
    }

    function _move(address from, address to, uint256 amount) private returns (bool) {
        if (way == Way.ReturnsFalse) return false;
        if (way == Way.CallsBack) {
            (bool done,) = target.call(call);
            if (done) ++succeeded;
            else ++failed;
        }
        balanceOf[from] -= way == Way.ChargesSender ? amount + amount / 10 : amount;
        balanceOf[to] += amount;
        if (way == Way.ReturnsNothing) {
            assembly {
                return(0, 0)
            }
        }
        return true;
    }
}
